"""The ways around the egress proxy that attackers try, on the driver and in the policy."""

import asyncio
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address

import pytest

from sinas_server.backends.sandbox import Ending, Sandbox
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.egress import RefusedError, make_policy
from sinas_server.kit.hosts import Address
from tests.backends.sandbox.egress_world import World, open_world


@pytest.fixture(scope="module")
async def world(driver: Callable[[SandboxConfig], Sandbox]) -> AsyncIterator[World]:
    async with open_world(driver) as made:
        yield made


async def say(world: World, request: str, egress: str = "public") -> str:
    """What the proxy answers to a request written by hand: its status line and reason, or what lies behind."""
    code = f"""import socket
def handler(i, c):
    s = socket.create_connection(('127.0.0.1', 3128))
    s.sendall({request!r}.encode())
    s.settimeout(10)
    answer = b''
    while part := s.recv(65536): answer += part
    return answer.decode()"""
    outcome = await world.run(code, egress=egress)
    assert isinstance(outcome.result, str), outcome
    return outcome.result


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:OUTSIDE",
        "localhost:OUTSIDE",
        "LOCALHOST.:OUTSIDE",
        "[::1]:OUTSIDE",
        "[::]:OUTSIDE",
        "0.0.0.0:OUTSIDE",
        "[::ffff:127.0.0.1]:OUTSIDE",
        "[::ffff:7f00:1]:OUTSIDE",
        "[64:ff9b::7f00:1]:OUTSIDE",
        "[2002:7f00:1::]:OUTSIDE",
        "2130706433:OUTSIDE",
        "0x7f000001:OUTSIDE",
        "0177.0.0.1:OUTSIDE",
        "127.1:OUTSIDE",
        "allowed.test@127.0.0.1:OUTSIDE",
        "host.docker.internal:OUTSIDE",
        "host.docker.internal:5432",
        "127.0.0.1:8000",
        "169.254.169.254:80",
        "[fd00:ec2::254]:80",
        "metadata.google.internal:80",
        "100.100.100.200:80",
        "10.0.0.1:22",
        "[fe80::1%25lo]:80",
        "[fc00::1]:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "allowed.test:1\r\nX: y",
        "allowed.test",
        "allowed.test:99999",
        "",
    ],
)
async def test_connect_gets_nowhere_else(world: World, target: str) -> None:
    world.outside.requests.clear()
    world.platform.requests.clear()
    line = target.replace("OUTSIDE", str(world.outside.port))
    answer = await say(world, f"CONNECT {line} HTTP/1.1\r\nHost: allowed.test\r\n\r\nGET / HTTP/1.0\r\n\r\n")
    assert answer.startswith(("HTTP/1.1 403", "HTTP/1.1 404", "HTTP/1.1 502")), answer
    assert world.outside.requests == world.platform.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:OUTSIDE/",
        "http://localhost:OUTSIDE/",
        "https://allowed.test/",
        "ftp://allowed.test/",
        "/health",
    ],
)
async def test_plain_http_gets_nowhere_else(world: World, url: str) -> None:
    world.outside.requests.clear()
    world.platform.requests.clear()
    at = url.replace("OUTSIDE", str(world.outside.port))
    answer = await say(world, f"GET {at} HTTP/1.1\r\nHost: allowed.test:{world.outside.port}\r\n\r\n")
    assert answer.startswith(("HTTP/1.1 403", "HTTP/1.1 404", "HTTP/1.1 502")), answer
    assert world.outside.requests == world.platform.requests == []


async def test_the_address_decides_and_not_the_host_header(world: World) -> None:
    world.platform.requests.clear()
    url = f"http://allowed.test:{world.outside.port}/"
    answer = await say(world, f"GET {url} HTTP/1.1\r\nHost: host.docker.internal:8000\r\n\r\n")
    assert answer.endswith("outside")
    assert world.platform.requests == []


async def test_one_connection_carries_one_request(world: World) -> None:
    """A second request behind the first goes where the first went, and is not judged as another target."""
    world.platform.requests.clear()
    first = f"GET http://allowed.test:{world.outside.port}/ HTTP/1.1\r\n\r\n"
    second = "GET http://host.docker.internal:8000/ HTTP/1.1\r\n\r\n"
    assert (await say(world, first + second)).count("HTTP/1.1 200") == 1
    assert world.platform.requests == []


@pytest.mark.parametrize("target", ["http://10.0.0.1/", "http://127.0.0.1:PORT/", "http://169.254.169.254/latest/"])
@pytest.mark.parametrize(
    "client", ["urllib.request as u\ndef get(url): return u.urlopen(url)", "requests as r\nget = r.get"]
)
async def test_a_redirect_to_a_private_address_is_refused(world: World, target: str, client: str) -> None:
    place = target.replace("PORT", str(world.outside.port))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            f"HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()

    redirecting = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = redirecting.sockets[0].getsockname()[1]
    world.outside.requests.clear()
    outcome = await world.run(
        f"import {client}\ndef handler(i, c): return get('http://allowed.test:{port}/').status_code"
    )
    assert outcome.ending is Ending.ERROR, outcome
    assert world.outside.requests == []
    redirecting.close()
    await redirecting.wait_closed()


@pytest.mark.parametrize("egress", ["public", "none"])
async def test_there_is_no_way_around_the_proxy(world: World, egress: str) -> None:
    """Below what is routed through the proxy there is no network at all: no DNS, no UDP, no raw socket."""
    code = """import _socket, errno
def attempt(kind, address, proto=0):
    try:
        s = _socket.socket(_socket.AF_INET, kind, proto)
        s.settimeout(2)
        s.connect(address)
        s.send(b'x')
    except OSError as e:
        return errno.errorcode.get(e.errno, type(e).__name__)
    return 'sent'
def handler(i, c):
    return [attempt(_socket.SOCK_STREAM, ('8.8.8.8', 53)), attempt(_socket.SOCK_DGRAM, ('8.8.8.8', 53)),
            attempt(_socket.SOCK_RAW, ('8.8.8.8', 0), 1), attempt(_socket.SOCK_STREAM, ('10.0.0.1', 80))]"""
    outcome = await world.run(code, egress=egress)
    assert isinstance(outcome.result, list)
    assert "sent" not in outcome.result, outcome.result


async def test_a_name_that_moves_to_a_private_address_is_refused_at_the_connection() -> None:
    """DNS rebinding: what was public when it was looked up is checked again, and once, when it is connected to."""
    answers = iter([["8.8.8.8"], ["10.0.0.1"], ["127.0.0.1"]])
    asked = 0

    async def moving(_host: str, _port: int) -> list[Address]:
        nonlocal asked
        asked += 1
        return [ip_address(text) for text in next(answers)]

    rules = make_policy(SandboxConfig(resolve=moving))
    assert [str(each) for each in await rules.addresses("public", "rebinding.test", 0)] == ["8.8.8.8"]
    with pytest.raises(RefusedError, match=r"10\.0\.0\.1 is not a public address"):
        await rules.addresses("public", "rebinding.test", 80)
    assert asked == 2, "the connection goes to an address that this one look-up gave"


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "ip6-localhost", "127.0.0.1."]
)
async def test_odd_spellings_of_loopback_with_the_real_resolver(host: str) -> None:
    rules = make_policy(SandboxConfig())
    with pytest.raises((RefusedError, OSError)):
        await rules.addresses("public", host.rstrip("."), 80)

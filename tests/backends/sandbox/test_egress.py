"""What functions reach through the egress proxy, by which client, under which policy."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from sinas_server.backends.net import Address, parse_rule
from sinas_server.backends.sandbox import Ending, Outcome, Sandbox
from sinas_server.backends.sandbox.egress import Policy, RefusedError, make_policy
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from sinas_server.backends.sandbox.native import sandbox as driver
from tests.backends.sandbox.conftest import PACKAGES, task

NAMES = {
    "allowed.test": ["127.0.0.1"],
    "private.test": ["10.1.2.3"],
    "mixed.test": ["10.1.2.3", "127.0.0.1"],
    "rebound.test": ["169.254.169.254"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "public.test": ["8.8.8.8"],
    "sub.wild.test": ["127.0.0.1"],
}


async def look_up(host: str, _port: int) -> list[Address]:
    if host not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [ip_address(text) for text in NAMES[host]]


@dataclass
class Server:
    """A small HTTP server on loopback that says which one it is, and how often it was asked."""

    port: int
    requests: list[bytes]


async def serve(name: str) -> tuple[Server, asyncio.Server]:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # a client that only connects
            seen.append(await reader.readuntil(b"\r\n\r\n"))
        body = name.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return Server(server.sockets[0].getsockname()[1], seen), server


@dataclass
class World:
    sandbox: Sandbox
    platform: Server
    outside: Server

    async def run(self, code: str, **changes: object) -> Outcome:
        return await self.sandbox.run(task(code.replace("PORT", str(self.outside.port)), **changes))


@pytest.fixture(scope="module")
async def world() -> AsyncIterator[World]:
    platform, one = await serve("platform")
    outside, two = await serve("outside")
    allowed = ("allowed.test", "*.wild.test", "mixed.test:1", "rebound.test", "169.254.169.254")
    config = SandboxConfig(
        packages=(PACKAGES,), min_size=2, max_size=4, platform_port=platform.port, allowed_hosts=allowed
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "make_policy", lambda allowed, hosts, port: make_policy(allowed, hosts, port, look_up))
        sandbox = open_sandbox(config)
    await sandbox.start()
    yield World(sandbox, platform, outside)
    await sandbox.close()
    for server in (one, two):
        server.close()
        await server.wait_closed()


URL = "http://allowed.test:PORT/path?x=1"
CLIENTS = {
    "urllib": f"import urllib.request\ndef handler(i, c): return urllib.request.urlopen('{URL}').read().decode()",
    "http.client": (
        "import http.client\ndef handler(i, c):\n    h = http.client.HTTPConnection('allowed.test', PORT)\n"
        "    h.request('GET', '/')\n    return h.getresponse().read().decode()"
    ),
    "requests": f"import requests\ndef handler(i, c): return requests.get('{URL}').text",
    "httpx2": f"import httpx2\ndef handler(i, c): return httpx2.get('{URL}').text",
    "async httpx2": (
        f"import httpx2\nasync def handler(i, c):\n"
        f"    async with httpx2.AsyncClient() as h: return (await h.get('{URL}')).text"
    ),
    "asyncio": (
        "import asyncio\nasync def handler(i, c):\n"
        "    r, w = await asyncio.open_connection('allowed.test', PORT)\n    w.write(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "    return (await r.read()).decode().split('\\r\\n\\r\\n')[1]"
    ),
    "socket": (
        "import socket\ndef handler(i, c):\n    s = socket.create_connection(('allowed.test', PORT))\n"
        "    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n    return s.makefile().read().split('\\n\\n')[1]"
    ),
    "socket without a look-up": (
        "import socket\ndef handler(i, c):\n    s = socket.socket()\n    s.connect(('allowed.test', PORT))\n"
        "    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n    return s.makefile().read().split('\\n\\n')[1]"
    ),
    "non-blocking connect_ex": (
        "import socket\ndef handler(i, c):\n    s = socket.socket()\n    s.setblocking(False)\n"
        "    assert s.connect_ex(('allowed.test', PORT)) == 0\n    s.setblocking(True)\n"
        "    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n    return s.makefile().read().split('\\n\\n')[1]"
    ),
    "IPv6 socket": (
        "import socket\ndef handler(i, c):\n    s = socket.socket(socket.AF_INET6)\n"
        "    s.connect(('allowed.test', PORT))\n"
        "    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n    return s.makefile().read().split('\\n\\n')[1]"
    ),
    "plain HTTP proxy": (
        f"import urllib.request as u\ndef handler(i, c):\n"
        f"    o = u.build_opener(u.ProxyHandler({{'http': 'http://127.0.0.1:3128'}}))\n"
        f"    return o.open('{URL}').read().decode()"
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
async def test_clients_reach_an_allowed_host(world: World, client: str) -> None:
    assert (await world.run(CLIENTS[client])).result == "outside"


async def test_names_below_a_wildcard(world: World) -> None:
    code = CLIENTS["urllib"].replace("allowed.test", "sub.wild.test")
    assert (await world.run(code, egress="list")).result == "outside"


async def test_the_proxy_sends_the_origin_form(world: World) -> None:
    world.outside.requests.clear()
    await world.run(CLIENTS["plain HTTP proxy"])
    assert world.outside.requests[0].startswith(b"GET /path?x=1 HTTP/1.1\r\n")


@pytest.mark.parametrize("egress", ["public", "list", "none"])
@pytest.mark.parametrize("base", ["'http://host.docker.internal:8000'", "os.environ['SINAS_URL']"])
async def test_the_platform_is_always_reached(world: World, egress: str, base: str) -> None:
    code = f"import os, urllib.request as u\ndef handler(i, c): return u.urlopen({base} + '/health').read().decode()"
    assert (await world.run(code, egress=egress)).result == "platform"


@pytest.mark.parametrize(
    ("host", "egress", "reason"),
    [
        ("private.test", "public", "10.1.2.3 is not a public address"),
        ("mapped.test", "public", "127.0.0.1 is not a public address"),
        ("mixed.test", "public", "not a public address"),
        ("rebound.test", "public", "169.254.169.254 is a cloud metadata address"),
        ("169.254.169.254", "public", "169.254.169.254 is a cloud metadata address"),
        ("10.0.0.1", "public", "10.0.0.1 is not a public address"),
        ("public.test", "list", "this function's egress is `list`"),
        ("8.8.8.8", "list", "8.8.8.8 is not on the list of allowed hosts"),
        ("allowed.test", "none", "this function's egress is `none`"),
        ("8.8.8.8", "none", "this function's egress is `none`"),
        ("host.docker.internal", "public", "only the platform's API is there"),
        ("unknown.test", "public", "cannot be resolved"),
    ],
)
async def test_refusals_say_why(world: World, host: str, egress: str, reason: str) -> None:
    outcome = await world.run(CLIENTS["urllib"].replace("allowed.test", host), egress=egress)
    assert outcome.ending is Ending.ERROR
    assert reason in (outcome.error or "")


async def test_a_refused_name_is_a_permission_error_and_an_unknown_one_is_not(world: World) -> None:
    code = (
        "import socket\ndef handler(i, c):\n    try: socket.create_connection(('NAME', 80))\n"
        "    except OSError as e: return type(e).__name__"
    )
    assert (await world.run(code.replace("NAME", "private.test"))).result == "PermissionError"
    assert (await world.run(code.replace("NAME", "unknown.test"))).result == "gaierror"


async def test_a_refused_port_is_a_connection_refused(world: World) -> None:
    code = (
        "import socket\ndef handler(i, c):\n    try: socket.create_connection(('allowed.test', 1))\n"
        "    except ConnectionRefusedError: return 'refused'"
    )
    assert (await world.run(code)).result == "refused"


@pytest.mark.parametrize(
    ("name", "error"), [("a b", "gaierror"), ("x\\r\\ny", "gaierror"), ("bücher.test", "gaierror")]
)
async def test_odd_names(world: World, name: str, error: str) -> None:
    code = f"""import socket
def handler(i, c):
    try: socket.create_connection(('{name}', 80))
    except OSError as e: return [type(e).__name__, str(e)]"""
    outcome = await world.run(code)
    assert isinstance(outcome.result, list)
    assert outcome.result[0] == error, outcome


async def test_connections_inside_the_sandbox_stay_inside(world: World) -> None:
    code = """import socket, threading
def handler(i, c):
    server = socket.create_server(('127.0.0.1', 0))
    client = socket.create_connection(server.getsockname())
    peer, _ = server.accept()
    client.sendall(b'x')
    return peer.recv(1).decode()"""
    assert (await world.run(code, egress="none")).result == "x"


async def test_look_ups_give_real_addresses(world: World) -> None:
    code = "from socket import gethostbyname as g\ndef handler(i, c): return [g('public.test'), g('localhost')]"
    assert (await world.run(code)).result == ["8.8.8.8", "127.0.0.1"]


async def test_an_asyncio_connect_does_not_block_the_loop(world: World) -> None:
    code = """import asyncio
async def handler(i, c):
    ticks = 0
    async def tick():
        nonlocal ticks
        while True: ticks += 1; await asyncio.sleep(0)
    ticking = asyncio.create_task(tick())
    r, w = await asyncio.open_connection('allowed.test', PORT)
    ticking.cancel()
    return ticks > 1"""
    assert (await world.run(code)).result is True


def policy(*allowed: str) -> Policy:
    return make_policy(allowed, ("host.docker.internal:8000",), 9000, look_up)


@pytest.mark.parametrize(
    ("entry", "host", "port", "reached"),
    [
        ("10.1.0.0/16", "private.test", 80, True),
        ("10.1.0.0/16", "10.1.9.9", 5432, True),
        ("10.1.0.0/16:443", "private.test", 80, False),
        ("10.2.0.0/16", "private.test", 80, False),
        ("private.test:80", "private.test", 80, True),
        ("private.test:80", "private.test", 81, False),
        ("*.test", "private.test", 80, True),
        ("*.private.test", "private.test", 80, False),
        ("[fd00::1]:80", "fd00::1", 80, True),
        ("fd00::/8", "fd00::1", 80, True),
        ("*.test", "rebound.test", 80, False),
        ("0.0.0.0/0", "169.254.169.254", 80, False),
        ("0.0.0.0/0", "100.100.100.200", 80, False),
        ("metadata.google.internal", "metadata.google.internal", 80, False),
        ("allowed.test", "public.test", 80, True),
        ("allowed.test", "224.0.0.1", 80, False),
        ("allowed.test", "2002:7f00:1::", 80, False),
        ("allowed.test", "64:ff9b::a00:1", 80, False),
    ],
)
async def test_allow_list(entry: str, host: str, port: int, reached: bool) -> None:
    with contextlib.nullcontext() if reached else pytest.raises(RefusedError):
        assert await policy(entry).addresses("public", host, port)


async def test_the_machines_own_public_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinas_server.backends.net._is_ours", lambda address: True)
    with pytest.raises(RefusedError, match=r"8\.8\.8\.8 is an address of this machine"):
        await policy().addresses("public", "public.test", 5432)


@pytest.mark.parametrize("entry", ["", ":80", "host:port"])
def test_an_entry_that_is_not_a_host(entry: str) -> None:
    with pytest.raises(ValueError, match=r"names no host|invalid literal"):
        parse_rule(entry)


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

    rules = make_policy((), ("host.docker.internal:8000",), 9000, moving)
    assert [str(each) for each in await rules.addresses("public", "rebinding.test", 0)] == ["8.8.8.8"]
    with pytest.raises(RefusedError, match=r"10\.0\.0\.1 is not a public address"):
        await rules.addresses("public", "rebinding.test", 80)
    assert asked == 2, "the connection goes to an address that this one look-up gave"


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "ip6-localhost", "127.0.0.1."]
)
async def test_odd_spellings_of_loopback_with_the_real_resolver(host: str) -> None:
    rules = make_policy((), ("host.docker.internal:8000",), 9000)
    with pytest.raises((RefusedError, OSError)):
        await rules.addresses("public", host.rstrip("."), 80)

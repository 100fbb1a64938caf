"""What functions reach through the egress proxy, by which client, under which policy."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from sinas_server.backends.sandbox import Ending, Sandbox
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.egress import EgressProxy, Policy, RefusedError, make_policy
from sinas_server.kit.hosts import parse_rule
from tests.backends.sandbox.egress_world import World, look_up, open_world


@pytest.fixture(scope="module")
async def world(driver: Callable[[SandboxConfig], Sandbox]) -> AsyncIterator[World]:
    async with open_world(driver) as made:
        yield made


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
    return make_policy(SandboxConfig(allowed_hosts=allowed, platform=("127.0.0.1", 9000), resolve=look_up))


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


async def test_a_connection_that_comes_as_the_execution_ends_is_closed() -> None:
    ours, theirs = socket.socketpair()
    proxy = EgressProxy(policy(), "none")
    proxy.serve(theirs)
    proxy.close()
    assert theirs.fileno() == -1
    ours.close()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("", "is no host name, address or network"),
        (":80", "is no host name, address or network"),
        ("http://host", "names no port after its colon"),
        ("host:port", "names no port after its colon"),
        ("host:65536", "names no port after its colon"),
    ],
)
def test_an_entry_that_is_not_a_host(entry: str, problem: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_rule(entry)
    assert str(raised.value) == f"{entry!r} {problem}"

"""A platform and a server outside it, and a sandbox whose proxy resolves names as these tests say."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address

from sinas_server.backends.sandbox import Outcome, Sandbox
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.kit.hosts import Address
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
    """What the tests of one module share."""

    sandbox: Sandbox
    platform: Server
    outside: Server

    async def run(self, code: str, **changes: object) -> Outcome:
        return await self.sandbox.run(task(code.replace("PORT", str(self.outside.port)), **changes))


@contextlib.asynccontextmanager
async def open_world(driver: Callable[[SandboxConfig], Sandbox]) -> AsyncIterator[World]:
    """All of it, while the block runs."""
    platform, one = await serve("platform")
    outside, two = await serve("outside")
    sandbox = driver(
        SandboxConfig(
            packages=(PACKAGES,),
            min_size=2,
            max_size=4,
            platform=("127.0.0.1", platform.port),
            allowed_hosts=("allowed.test", "*.wild.test", "mixed.test:1", "rebound.test", "169.254.169.254"),
            resolve=look_up,
        )
    )
    await sandbox.start()
    yield World(sandbox, platform, outside)
    await sandbox.close()
    for server in (one, two):
        server.close()
        await server.wait_closed()

"""The egress proxy: the only way out of a sandbox, served by the host on a port inside the sandbox.

It speaks CONNECT, plain HTTP with absolute URLs, and RESOLVE (`RESOLVE name HTTP/1.1` answers the addresses that may
be reached, one a line). Errors come as 403 (refused), 404 (no such name), 502 or 504, with the reason in `X-Error`.
"""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from urllib.parse import urlsplit

from sinas_server.backends.net import (
    METADATA_NAMES,
    embedded_ipv4,
    literal,
    refuse_metadata,
    refuse_private,
)
from sinas_server.backends.sandbox import Egress
from sinas_server.backends.sandbox.config import Resolve, SandboxConfig
from sinas_server.kit.hosts import Address, Rule, parse_rule

HEAD_SECONDS = 10.0
CONNECT_SECONDS = 30.0
MAX_CONNECTIONS = 64
CHUNK = 1 << 16
HEAD_LIMIT = 1 << 16
LOOPBACK = "127.0.0.1"


class RefusedError(Exception):
    """The policy does not allow it; the message says what and why."""


@dataclass(frozen=True)
class Policy:
    """What sandboxes may reach."""

    rules: tuple[Rule, ...]
    platform_hosts: frozenset[tuple[str, int]]
    platform: tuple[str, int]
    """Where it really is."""
    resolve: Resolve

    def is_platform(self, host: str, port: int) -> bool:
        """Whether this means the platform's own API."""
        return (host, port) in self.platform_hosts

    def knows_platform_name(self, host: str) -> bool:
        """Whether the name means the platform at some port."""
        return any(host == name for name, _ in self.platform_hosts)

    async def addresses(self, egress: Egress, host: str, port: int) -> list[Address]:
        """The addresses of `host` that may be reached under `egress`; port 0 for a look-up.

        Raises `RefusedError` or, when the name does not resolve, `OSError`.
        """
        if host in METADATA_NAMES:
            raise RefusedError(f"{host} may not be reached: it is a cloud metadata address")
        named = any(rule.names(host, port) or (port == 0 and rule.names(host, rule.port or 0)) for rule in self.rules)
        given = literal(host)
        if egress == "none" or (egress == "list" and not named and given is None):
            raise RefusedError(f"egress to {host} is not permitted: this function's egress is `{egress}`")
        found = [given] if given is not None else await self.resolve(host, port)
        reasons: list[str] = []
        allowed: list[Address] = []
        for address in found:
            real = embedded_ipv4(address)
            reason = self._refusal(egress, real, port, named=named)
            if reason is None:
                allowed.append(address)
            else:
                reasons.append(f"{real} is {reason}")
        if not allowed:
            raise RefusedError(f"egress to {host} is not permitted: {', '.join(reasons)}")
        return allowed

    def _refusal(self, egress: Egress, address: Address, port: int, *, named: bool) -> str | None:
        if refuse_metadata(address):
            return "a cloud metadata address"
        if named or any(rule.holds(address, port) for rule in self.rules):
            return None
        if egress == "list":
            return "not on the list of allowed hosts"
        return refuse_private(address)


def make_policy(config: SandboxConfig) -> Policy:
    """The policy of a sandbox. Raises `ValueError` for an allowed host that is none."""
    entries = (entry.rpartition(":") for entry in config.platform_hosts)
    hosts = frozenset((host, int(port)) for host, _, port in entries)
    return Policy(tuple(map(parse_rule, config.allowed_hosts)), hosts, config.platform, config.resolve)


class EgressProxy:
    """Serves one execution."""

    def __init__(self, policy: Policy, egress: Egress) -> None:
        self._policy = policy
        self._egress = egress
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._unserved: set[socket.socket] = set()
        """Those whose task has not begun."""

    def listen(self, listener: socket.socket) -> None:
        """Serve what connects to a socket inside the sandbox; the caller closes it after `close`."""
        self._listener = listener
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    def close(self) -> None:
        """Stop serving; open connections end."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
        for task in self._tasks:
            task.cancel()
        for connection in self._unserved:  # a task that is canceled before it begins never does
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.serve(listener.accept()[0])

    def serve(self, connection: socket.socket) -> None:
        """Serve one connection, and close it."""
        if len(self._tasks) >= MAX_CONNECTIONS:
            connection.close()
            return
        self._unserved.add(connection)
        task = self._loop.create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket) -> None:
        self._unserved.discard(connection)
        connection.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection, limit=HEAD_LIMIT)
        try:
            answer = await self._answer(reader, writer)
            if answer:
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the guest went away or does not speak our language
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """What is still to be sent, after the connection was served."""
        async with asyncio.timeout(HEAD_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
        line, _, rest = head.decode("latin-1").partition("\r\n")
        method, _, remainder = line.partition(" ")
        target = remainder.rpartition(" ")[0]
        try:
            if method == "RESOLVE":
                return await self._resolve(target)
            if method == "CONNECT":
                host, port = _host_port(f"//{target}", None)
                upstream = await self._connect(host, port)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                host, port = _host_port(target, 80)
                upstream = await self._connect(host, port)
                upstream[1].write(_origin_request(method, target, rest))
        except RefusedError as error:
            return _failure(403, str(error))
        except socket.gaierror as error:
            return _failure(404, f"{target} cannot be resolved: {error.strerror}")
        except TimeoutError:
            return _failure(504, f"connecting to {target} took too long")
        except (OSError, ValueError) as error:
            return _failure(502, f"{target}: {error}")
        await _both_ways((reader, writer), upstream)
        return b""

    async def _resolve(self, name: str) -> bytes:
        host = name.lower().rstrip(".")
        if self._policy.knows_platform_name(host):
            return _success(LOOPBACK)
        addresses = await self._policy.addresses(self._egress, host, 0)
        return _success("\n".join(map(str, addresses)))

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the very address that was checked."""
        if self._policy.is_platform(host, port):
            return await asyncio.open_connection(*self._policy.platform)
        if self._policy.knows_platform_name(host):
            raise RefusedError(f"egress to {host}:{port} is not permitted: only the platform's API is there")
        async with asyncio.timeout(CONNECT_SECONDS):
            failure: OSError = ConnectionRefusedError("no address")
            for address in await self._policy.addresses(self._egress, host, port):
                try:
                    return await asyncio.open_connection(str(address), port)
                except OSError as error:
                    failure = error
        raise failure


def _host_port(url: str, default: int | None) -> tuple[str, int]:
    """Raises `ValueError` or `RefusedError`."""
    parts = urlsplit(url)
    port = parts.port or default
    if not parts.hostname or port is None:
        raise RefusedError(f"{url} is not a target of the form host:port")
    if parts.scheme not in {"", "http"}:
        raise RefusedError(f"{parts.scheme} is not spoken by the proxy; use CONNECT")
    return parts.hostname.rstrip("."), port


def _origin_request(method: str, target: str, headers: str) -> bytes:
    """The request as the origin expects it; one request per connection."""
    parts = urlsplit(target)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    dropped = ("proxy-", "connection:")
    kept = [line for line in headers.split("\r\n") if line and not line.lower().startswith(dropped)]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode("latin-1")


def _success(body: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\n\r\n{body}\n".encode()


def _failure(status: int, reason: str) -> bytes:
    text = reason.replace("\r", " ").replace("\n", " ").encode("ascii", "replace").decode()[:500]
    return f"HTTP/1.1 {status} Egress\r\nX-Error: {text}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()


Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _both_ways(inside: Pair, outside: Pair) -> None:
    """Copy until both sides have finished."""
    try:
        copies: list[Coroutine[None, None, None]] = [_copy(inside[0], outside[1]), _copy(outside[0], inside[1])]
        await asyncio.gather(*copies)
    finally:
        outside[1].close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        sink.close()
        return
    if sink.can_write_eof() and not sink.is_closing():  # uvloop raises RuntimeError for one that is closed
        with contextlib.suppress(OSError):
            sink.write_eof()

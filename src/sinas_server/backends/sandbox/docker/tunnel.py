"""One connection of an execution to the egress proxy: frames on one side, a socket of the proxy on the other."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from sinas_server.backends.sandbox.guest import wire

Send = Callable[[wire.Kind, int, bytes], Awaitable[None]]
LIMIT = 2 * wire.WINDOW


class Tunnel:
    """Copies both ways until both have ended; what goes to the container waits for its confirmation."""

    def __init__(self, number: int, ours: socket.socket, send: Send) -> None:
        self._number = number
        self._send = send
        self._incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = 0
        self._credit = wire.WINDOW
        self._credited = asyncio.Event()
        self._started = False
        self._task = asyncio.create_task(self._run(ours))
        self._task.add_done_callback(lambda _: None if self._started else ours.close())

    async def _run(self, ours: socket.socket) -> None:
        self._started = True
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._inward(reader))
                both.create_task(self._outward(writer))
        except* OSError:  # the proxy or the link is gone
            await self._say(wire.Kind.CLOSE)
        finally:
            writer.close()

    async def _say(self, kind: wire.Kind, body: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            await self._send(kind, self._number, body)

    async def _inward(self, reader: asyncio.StreamReader) -> None:
        """From the proxy to the container."""
        while data := await reader.read(min(wire.MAX_FRAME, self._credit)):
            self._credit -= len(data)
            await self._send(wire.Kind.DATA, self._number, data)
            while self._credit <= 0:
                self._credited.clear()
                await self._credited.wait()
        await self._say(wire.Kind.EOF)

    async def _outward(self, writer: asyncio.StreamWriter) -> None:
        """From the container to the proxy."""
        while data := await self._incoming.get():
            writer.write(data)
            await writer.drain()
            self._waiting -= len(data)
            await self._send(wire.Kind.TAKEN, self._number, len(data).to_bytes(4, "big"))
        if not writer.is_closing():
            writer.write_eof()

    def receive(self, kind: int, body: bytes) -> None:
        """A frame of the container about this connection."""
        if kind == wire.Kind.TAKEN:
            self._credit += int.from_bytes(body, "big")
            self._credited.set()
        elif kind == wire.Kind.CLOSE or self._waiting > LIMIT:
            self.close()
        else:
            self._waiting += len(body)
            self._incoming.put_nowait(body)  # nothing for the end of the stream

    def close(self) -> None:
        """Break the connection off."""
        self._task.cancel()

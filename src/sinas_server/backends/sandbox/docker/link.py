"""Frames to and from a container over the engine's attach stream."""

import asyncio
import contextlib
from collections.abc import Callable

import aiodocker
import aiohttp
from aiodocker.stream import Stream

from sinas_server.backends.sandbox.guest import wire

STDERR = 2
COMPLAINT = 4000
PIECE = 1 << 18

OnFrame = Callable[[int, int, bytes], None]


class LinkLostError(ConnectionError):
    """The container or the engine is gone."""


class Link:
    """The one connection to a container. `on_frame` is called for each frame; `gone` is done when it is lost."""

    def __init__(self, stream: Stream, on_frame: OnFrame) -> None:
        self._stream = stream
        self._on_frame = on_frame
        self._reader = wire.Reader()
        self._complaint = b""
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read())

    @property
    def complaint(self) -> str:
        """What the container wrote to standard error: its last words."""
        lines = self._complaint.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    async def _read(self) -> None:
        try:
            while message := await self._stream.read_out():
                if message.stream == STDERR:
                    self._complaint = (self._complaint + message.data)[-COMPLAINT:]
                else:
                    for kind, number, body in self._reader.feed(message.data):
                        self._on_frame(kind, number, body)
        except (OSError, aiohttp.ClientError, aiodocker.DockerError, ValueError):
            pass
        finally:
            if not self.gone.done():
                self.gone.set_result(None)

    async def send(self, kind: wire.Kind, number: int, body: bytes = b"") -> None:
        """Send a frame, waiting while the container does not take it. Raises `LinkLostError`."""
        if self.gone.done():
            raise LinkLostError("the container is gone")
        try:
            for start in range(0, len(body) or 1, PIECE):
                await self._stream.write_in(wire.pack(kind, number, body[start : start + PIECE]))
        except (OSError, aiohttp.ClientError, RuntimeError, AssertionError) as error:
            raise LinkLostError(f"the container is gone: {error}") from error

    async def close(self) -> None:
        """Let go of the container; it ends then, if it has not yet."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(OSError, aiohttp.ClientError, AssertionError):
            await self._stream.close()

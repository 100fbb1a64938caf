"""The container's end of the frames: its standard input and output, without blocking."""

import json
import os
import select
import time

from . import wire

FULL = 1 << 20
"""Bytes on their way to the host or to the execution from which on no more are taken in."""
CHUNK = 1 << 16
FLUSH_SECONDS = 5.0


class Channel:
    """Frames to and from the host."""

    def __init__(self) -> None:
        self._reader = wire.Reader()
        self._out = bytearray()
        self.heard = time.monotonic()

    @property
    def full(self) -> bool:
        """Whether the host should take something first."""
        return len(self._out) > FULL

    @property
    def unsent(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._out)

    def send(self, kind: wire.Kind, number: int = 0, body: bytes = b"") -> None:
        """Send a frame, or keep it until the host takes it."""
        self._out += wire.pack(kind, number, body)
        self.flush()

    def say(self, kind: wire.Kind, number: int = 0, **fields: object) -> None:
        """Send a frame of JSON."""
        self.send(kind, number, json.dumps(fields).encode())

    def flush(self) -> None:
        """Write what the host takes now."""
        while self._out:
            try:
                del self._out[: os.write(1, self._out)]
            except BlockingIOError:
                return
            except OSError:
                os._exit(0)  # the host is gone

    def wait_flushed(self) -> None:
        """Write everything, if the host takes it within a few seconds."""
        poll = select.poll()
        poll.register(1, select.POLLOUT)
        until = time.monotonic() + FLUSH_SECONDS
        while self._out and time.monotonic() < until:
            poll.poll(100)
            self.flush()

    def first(self) -> bytes:
        """The body of the first frame; afterwards nothing here blocks."""
        while True:
            for _, _, body in self.receive():
                for fd in (0, 1):
                    os.set_blocking(fd, False)
                return body

    def receive(self) -> list[tuple[int, int, bytes]]:
        """The frames that came; ends the process when the host is gone."""
        try:
            data = os.read(0, CHUNK)
        except BlockingIOError:
            return []
        if not data:
            os._exit(0)
        self.heard = time.monotonic()
        return list(self._reader.feed(data))

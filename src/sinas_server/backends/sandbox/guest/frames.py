"""Messages over the sandbox's private socket: four bytes of length, then JSON. Imported by the host too."""

import os
import struct

HEADER = struct.Struct("!I")
READY = b"R"
FAILED = b"E"


def pack(body: bytes) -> bytes:
    """A message with its length in front."""
    return HEADER.pack(len(body)) + body


def read(fd: int) -> bytes:
    """The next message of a blocking descriptor. Raises `EOFError` when the other side is gone."""
    return _exactly(fd, HEADER.unpack(_exactly(fd, HEADER.size))[0])


def _exactly(fd: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count > 0:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes) -> None:
    """Write everything to a blocking descriptor. Raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

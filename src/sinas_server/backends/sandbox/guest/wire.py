"""The frames between a sandbox container and its host, over the container's standard input and output.

A frame is one byte for its kind, a number, a length, and that many bytes. The number is that of the execution, or of
the connection for those about connections. Imported by the host too.
"""

import hashlib
import struct
from collections.abc import Iterator
from enum import IntEnum
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

HEAD = struct.Struct("!BII")
MAX_FRAME = 1 << 16
"""Most bytes in one frame; what is longer goes in several."""
WINDOW = 1 << 17
"""Bytes of a connection that may be under way unconfirmed, in each direction."""
SILENCE_SECONDS = 200.0
"""A container that hears nothing from its host for so long ends: its host is gone."""


class Kind(IntEnum):
    """What a frame says."""

    # From the host
    CONFIG = 1  # JSON, the first frame
    RUN = 2  # a piece of the request
    KILL = 3  # end the execution
    PING = 4
    # From the container
    HELLO = 16  # JSON: it is prepared
    FAILED = 17  # JSON: it cannot be prepared
    READY = 18  # a process waits for a request
    STDOUT = 19
    STDERR = 20
    REPLY = 21  # a piece of what the execution answered
    END = 22  # JSON: how the execution ended; nothing of it follows
    PONG = 23
    OPEN = 24  # the execution connected to the egress proxy
    # Both ways, about a connection
    DATA = 32
    EOF = 33  # no more data in this direction
    CLOSE = 34  # the connection is broken off
    TAKEN = 35  # so many bytes of the connection were passed on: a number


def pack(kind: Kind, number: int = 0, body: bytes = b"") -> bytes:
    """One frame, or several when the body is long."""
    if len(body) <= MAX_FRAME:
        return HEAD.pack(kind, number, len(body)) + body
    pieces = (body[start : start + MAX_FRAME] for start in range(0, len(body), MAX_FRAME))
    return b"".join(HEAD.pack(kind, number, len(piece)) + piece for piece in pieces)


class Reader:
    """Frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """The frames that are complete now: kind, number, body. Raises `ValueError` for what is no frame."""
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) >= at + HEAD.size:
                kind, number, length = HEAD.unpack_from(self._buffer, at)
                if length > MAX_FRAME:
                    raise ValueError(f"a frame of {length} bytes")
                end = at + HEAD.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(self._buffer[at + HEAD.size : end])
                at = end
                yield kind, number, body
        finally:
            del self._buffer[:at]


def interpreter() -> str:
    """For what compiled packages must be made so that this interpreter can import them."""
    return EXTENSION_SUFFIXES[0].removeprefix(".").removesuffix(".so")


def fingerprint() -> str:
    """Tells whether host and image hold the same guest program."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]

"""Messages between a shared worker and its host: a sort, the execution it is about, and a payload."""

import struct
from typing import Final

from . import frames

_HEAD = struct.Struct("!BQ")

RUN: Final = 1
"""Host: run this request (`shared.Request` as JSON)."""
STOP: Final = 2
"""Host: end this execution."""
ANSWER: Final = 3
"""Host: the `shared.Answer` to a question."""
READY: Final = 4
"""Worker: it can run."""
STDOUT: Final = 5
STDERR: Final = 6
"""Worker: bytes that were printed."""
ASK: Final = 7
"""Worker: a `shared.Question` of the code."""
DONE: Final = 8
"""Worker: the reply (`runner.Reply` as JSON)."""


def pack(sort: int, execution: int, payload: bytes = b"") -> bytes:
    """A message as it is sent."""
    return frames.pack(_HEAD.pack(sort, execution) + payload)


def unpack(body: bytes) -> tuple[int, int, bytes]:
    """Sort, execution and payload of a message without its length. Raises `struct.error`."""
    sort, execution = _HEAD.unpack_from(body)
    return sort, execution, body[_HEAD.size :]

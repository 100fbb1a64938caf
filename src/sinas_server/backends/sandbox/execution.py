"""What both drivers do with one execution: the request they send, and the text of stdout and stderr they keep."""

import codecs
import json
import math
from typing import Literal

from sinas_server.backends.sandbox import OnOutput, Task
from sinas_server.backends.sandbox.config import GUEST_PLATFORM_HOST, GUEST_PLATFORM_PORT
from sinas_server.backends.sandbox.guest import frames

PLATFORM_ENV = {"SINAS_URL": f"http://{GUEST_PLATFORM_HOST}:{GUEST_PLATFORM_PORT}"}
REPLY_EXTRA = 1 << 20
"""Bytes a reply may have beyond the result: the error and the traceback."""


def fields(task: Task) -> dict[str, object]:
    """What the guest is told about a task."""
    return {
        "code": task.code,
        "filename": task.filename,
        "entry_points": task.entry_points,
        "input": task.input,
        "context": dict(task.context),
        "env": PLATFORM_ENV | dict(task.env),
        "cpu_seconds": math.ceil(task.limits.wall_seconds * max(1.0, task.limits.cpus)) + 1,
        "result_bytes": task.limits.result_bytes,
    }


def request(task: Task) -> bytes:
    """What the guest is sent."""
    return frames.pack(json.dumps(fields(task)).encode())


class Output:
    """stdout or stderr of an execution: decoded, passed on live, kept up to a limit."""

    def __init__(self, name: Literal["stdout", "stderr"], limit: int, on_output: OnOutput | None) -> None:
        self._name: Literal["stdout", "stderr"] = name
        self._left = limit
        self._limit = limit
        self._on_output = on_output
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []

    def feed(self, data: bytes) -> None:
        """What was printed; beyond the limit it is thrown away, so that the writer never stalls."""
        if self._left < 0:
            return
        text = self._decoder.decode(data[: self._left])
        self._left -= len(data)
        if self._left < 0:
            text += f"\n[output truncated at {self._limit} bytes]\n"
        self._emit(text)

    def _emit(self, text: str) -> None:
        text = text.replace("\x00", "\ufffd")  # cannot be stored as text
        if text:
            self._parts.append(text)
            if self._on_output is not None:
                self._on_output(self._name, text)

    def finish(self) -> str:
        """All of it."""
        if self._left >= 0:
            self._emit(self._decoder.decode(b"", final=True))
        return "".join(self._parts)

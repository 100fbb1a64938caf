"""stdout and stderr of code that shares a process: what a thread prints goes to the execution it works for."""

import io
import sys
from collections.abc import Callable
from typing import Final, cast

from . import messages

Route = Callable[[int], Callable[[bytes], None] | None]
"""Where bytes for `messages.STDOUT` or `STDERR` go from here; None if no execution is at work."""
NAMES: Final = {messages.STDOUT: "stdout", messages.STDERR: "stderr"}


class _Raw(io.RawIOBase):
    """The bytes below a stream."""

    def __init__(self, sort: int, route: Route, fallback: io.TextIOBase) -> None:
        super().__init__()
        self._sort = sort
        self._route = route
        self._fallback = fallback

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: object, /) -> int:
        """Pass bytes on to the execution of this thread, or to the log of the platform."""
        body = bytes(memoryview(cast(bytes, data)))
        send = self._route(self._sort)
        if send is None:
            self._fallback.write(body.decode(errors="backslashreplace"))
            self._fallback.flush()
        else:
            send(body)
        return len(body)


class Stream(io.TextIOBase):
    """What `sys.stdout` and `sys.stderr` are: never buffered, so that no thread's text waits in another's."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, sort: int, route: Route, fallback: io.TextIOBase) -> None:
        super().__init__()
        self.name = f"<{NAMES[sort]}>"
        self.buffer = _Raw(sort, route, fallback)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str, /) -> int:
        """Pass text on. Raises `TypeError` for anything else."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self.buffer.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""


def install(route: Route) -> None:
    """Replace the streams of this process; what no execution prints goes to its standard error."""
    log = cast(io.TextIOBase, sys.stderr)
    for sort, name in NAMES.items():
        stream = Stream(sort, route, log)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)

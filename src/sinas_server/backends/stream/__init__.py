"""Live events: signals that something happened, and streams of events that readers can join at any point."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


class Listener(Protocol):
    """Waits for one topic."""

    @property
    def note(self) -> bytes:
        """What came with the last signal; empty if nothing did."""
        ...

    async def wait(self, timeout_seconds: float) -> bool:
        """True as soon as the topic was signaled since the last wait; False after the timeout."""
        ...


class Signals(Protocol):
    """Tells every process that something happened; may be lost, with its note (so listeners also look)."""

    async def signal(self, topic: str, note: bytes = b"") -> None:
        """Wake every listener of `topic` in every process. Redis being away is no error.

        A `note` may save listeners a look: a copy of what is stored already.
        """
        ...

    def listen(self, topic: str) -> AbstractAsyncContextManager[Listener]:
        """Listen to `topic` while the context is open; signals sent since then are not missed."""
        ...


@dataclass(frozen=True, order=True)
class Position:
    """A place in a stream: `<step>-<offset>`, also the SSE event id."""

    step: int
    offset: int

    def __str__(self) -> str:
        return f"{self.step}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read `3-120`, or `3` for `3-0`. Raises ValueError."""
        step, _, offset = text.partition("-")
        found = cls(int(step), int(offset or 0))
        if found.step < 0 or found.offset < 0 or found.step > LAST or found.offset > LAST:
            raise ValueError(f"not a stream position: {text!r}")
        return found


START = Position(0, 0)
LAST = (1 << 53) - 1
"""The highest step and offset."""


@dataclass(frozen=True)
class StreamEvent:
    """One event of a stream; `data` is its JSON payload."""

    position: Position
    name: str
    data: bytes


class StreamLostError(Exception):
    """The stream existed and is gone (Redis lost it); its writer must rebuild it."""


class StreamUnavailableError(ConnectionError):
    """The server that holds the streams does not answer now."""


class EventStreams(Protocol):
    """Append-only streams with positions chosen by the writer; one writer, many readers.

    Every method raises `StreamUnavailableError` while the server is away. `tell`: signals in the same round trip.
    """

    async def create(self, channel: str, events: Sequence[StreamEvent] = (), *, tell: Sequence[str] = ()) -> None:
        """Start `channel` anew holding `events`; what was there is gone."""
        ...

    async def append(self, channel: str, events: Sequence[StreamEvent], *, tell: Sequence[str] = ()) -> None:
        """Add events in order. One that is there already is skipped, and one before a seal is left out.

        Raises `StreamLostError` if the channel is gone.
        """
        ...

    async def seal(self, channel: str, upto: Position) -> list[StreamEvent]:
        """Its events; from now on none is added to it at a position up to this one."""
        ...

    async def read(self, channel: str, after: Position) -> tuple[bool, list[StreamEvent]]:
        """Whether the channel exists, and its events after `after`."""
        ...

    async def drop(self, channel: str) -> None:
        """Forget a channel."""
        ...

    async def expire(self, channel: str, seconds: int) -> None:
        """Forget a channel after a while."""
        ...

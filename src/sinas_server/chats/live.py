"""Sending events as they happen: the stream repeats the journal, and only the text of an answer runs ahead of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TypeVar
from uuid import UUID

from sinas_server.backends.stream import START, StreamEvent, StreamLostError, StreamUnavailableError
from sinas_server.chats.events import (
    Kind,
    Runs,
    Segment,
    cut,
    length,
    merged,
    rest,
    restart_event,
    spoken,
    text_events,
)
from sinas_server.kernel.job import InterruptedWorkError
from sinas_server.kernel.runtime import Runtime

T = TypeVar("T")
PATIENCE_SECONDS = 20.0
"""How long Redis may be away before the turn is given back."""
RETRY_SECONDS = 0.2
KEPT_SECONDS = 600
"""How long a finished channel stays in Redis; the journal answers after that."""
LOST_STRIDE = 1_000_000_000
"""Positions left to earlier attempts when what they sent is unknown: more than an answer has characters."""


def topic(channel_id: UUID) -> str:
    """The signal that a channel has new events."""
    return f"stream:{channel_id}"


def turn_topic(turn_id: UUID) -> str:
    """The signal that a turn has ended or paused."""
    return f"turn:{turn_id}"


class Channel:
    """The writing end of a channel."""

    def __init__(self, runtime: Runtime, channel_id: UUID, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.runtime = runtime
        self.id = channel_id
        self._patience = patience_seconds
        self.log: list[StreamEvent] = []
        """Everything on the channel, to write it again should Redis lose it."""
        self._unsure: Sequence[StreamEvent] = ()
        self.unknown = False
        """Whether earlier text of the current answer was lost together with Redis."""

    async def open(self, segment: Segment, *, interrupted: bool) -> None:
        """Begin the channel, or go on where a lost worker stopped."""
        if interrupted:
            exists, found = await self._patiently(lambda: self.runtime.streams.read(str(self.id), START))
            if exists:
                self.log = found
                await self.catch_up(segment)
                return
            self.unknown = True
        self.log = segment.events()
        await self._patiently(self._create)

    async def catch_up(self, segment: Segment) -> None:
        """Send what is journaled and not on the channel yet."""
        await self.send(rest(segment.events(), self.log[-1].position if self.log else START))

    async def send(self, events: Sequence[StreamEvent], tell: Sequence[str] = ()) -> None:
        """Add events, and tell the readers. Raises `InterruptedWorkError` if Redis stays away."""
        if not events and not tell:
            return
        self.log.extend(events)
        self._unsure = events
        await self._patiently(lambda: self._append(events, tell))
        self._unsure = ()

    async def finish(self, segment: Segment) -> None:
        """Send the rest of what is journaled, tell those who wait for the turn, and let Redis forget the channel."""
        if self._unsure:  # canceled while sending
            await self._patiently(lambda: self._append(self._unsure))
        events = rest(segment.events(), self.log[-1].position if self.log else START)
        await self.send(events, [turn_topic(segment.turn_id)])
        await self._patiently(lambda: self.runtime.streams.expire(str(self.id), KEPT_SECONDS))

    async def _append(self, events: Sequence[StreamEvent], tell: Sequence[str] = ()) -> None:
        try:
            await self.runtime.streams.append(str(self.id), events, tell=[topic(self.id), *tell])
        except StreamLostError:
            await self._create(tell)

    async def _create(self, tell: Sequence[str] = ()) -> None:
        await self.runtime.streams.create(str(self.id), self.log, tell=[topic(self.id), *tell])

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        deadline = monotonic() + self._patience
        while True:
            try:
                return await attempt()
            except StreamUnavailableError as error:
                if monotonic() > deadline:
                    raise InterruptedWorkError(f"the event stream is not available: {error}") from error
                await asyncio.sleep(RETRY_SECONDS)


async def send_end(runtime: Runtime, segment: Segment) -> None:
    """Tell readers the end; without Redis they find it in the journal."""
    channel = Channel(runtime, segment.channel_id, patience_seconds=0)
    with suppress(InterruptedWorkError):
        await channel.open(segment, interrupted=True)
        await channel.finish(segment)


class Speech:
    """One answer on its way to the readers. What an earlier attempt has sent is not sent again if it is the same."""

    def __init__(self, channel: Channel, step: int, attempt: int) -> None:
        self.channel = channel
        self.step = step
        self.offset, self.sent = spoken(channel.log, step)
        self.said: Runs = ()
        self._restart_at: int | None = None
        if channel.unknown:
            self._restart_at = (attempt - 1) * LOST_STRIDE + 1
            channel.unknown = False

    def add(self, kind: Kind, text: str) -> None:
        """The model said more."""
        self.said = merged(self.said, kind, text)

    async def flush(self) -> None:
        """Send what was said and not sent yet."""
        before, now = length(self.sent), length(self.said)
        common = min(before, now)
        if self._restart_at is not None or cut(self.sent, 0, common) != cut(self.said, 0, common):
            await self._restart()
        elif now > before:
            fresh = cut(self.said, before)
            self.sent = self.said
            await self.channel.send(text_events(self.step, self.offset + before, fresh))

    async def finish(self, runs: Runs) -> None:
        """Make the readers have exactly this text."""
        self.said = runs
        await self.flush()
        if self.sent != self.said:  # an earlier attempt had said more
            await self._restart()

    async def _restart(self) -> None:
        self.offset = self._restart_at or self.offset + length(self.sent) + 1
        self._restart_at = None
        self.sent = self.said
        await self.channel.send(
            [restart_event(self.step, self.offset), *text_events(self.step, self.offset, self.said)]
        )

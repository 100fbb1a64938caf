"""Reading a channel: what happened since a position, then what happens, as server-sent events."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.stream import LAST, Position, StreamEvent, StreamUnavailableError
from sinas_server.chats.events import ENDS, payload, rest, trimmed
from sinas_server.chats.live import topic
from sinas_server.chats.record import end_of, read_channel, read_segment, read_turn
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit import sse

IDLE_SECONDS = 5.0
"""After this long without an event: a sign of life, and a look whether the end was missed."""


def deleted() -> StreamEvent:
    """The last event of every channel of a deleted chat."""
    return StreamEvent(Position(LAST, 1), "error", b'{"error":"the chat was deleted"}')


async def journaled(runtime: Runtime, channel_id: UUID) -> list[StreamEvent] | None:
    """All events of a channel that has come to its end; None while it goes on."""
    channel = await read_channel(runtime.database.read, channel_id)
    turn = await read_turn(runtime.database.read, channel.turn_id) if channel is not None else None
    if channel is None or turn is None:
        return [deleted()]
    if end_of(channel, turn) is None:
        return None
    segment = await read_segment(runtime.database.read, channel, turn)
    return segment.events()


async def replay(events: Sequence[StreamEvent], after: Position) -> AsyncIterator[bytes]:
    """The events of a channel that has come to its end, after a position."""
    for event in rest(events, after):
        yield _block(event)


def _block(event: StreamEvent) -> bytes:
    return sse.event(event.name, payload(event), str(event.position))


async def follow(
    runtime: Runtime, channel_id: UUID, after: Position, idle_seconds: float = IDLE_SECONDS
) -> AsyncIterator[bytes]:
    """The events of a channel after a position as server-sent events, each as one block, until its end."""
    async for event in happenings(runtime, channel_id, after, idle_seconds):
        yield sse.PING if event is None else _block(event)


async def happenings(
    runtime: Runtime, channel_id: UUID, after: Position, idle_seconds: float = IDLE_SECONDS
) -> AsyncGenerator[StreamEvent | None, None]:
    """The events of a channel after a position until its end, None as a sign of life. Holds no database connection.

    Redis may lose the channel meanwhile: its writer writes it again, under the same ids.
    """
    position = after
    async with runtime.signals.listen(topic(channel_id)) as listener:
        silent = False
        while True:
            events = await _look(runtime, channel_id, position, silent=silent)
            for event in events:
                fresh, position = trimmed(event, position), max(position, event.position)
                if fresh is not None:
                    yield fresh
                if event.name in ENDS:
                    return
            silent = not await listener.wait(idle_seconds)
            if silent:
                yield None


async def _look(runtime: Runtime, channel_id: UUID, after: Position, *, silent: bool) -> list[StreamEvent]:
    """New events; after a silence also from the journal, should the end have been lost with Redis or a worker."""
    try:
        _, events = await runtime.streams.read(str(channel_id), after)
    except StreamUnavailableError:
        events = []
    if events or not silent:
        return events
    try:
        return await journaled(runtime, channel_id) or []
    except SQLAlchemyError:  # away; the next look will tell
        return []

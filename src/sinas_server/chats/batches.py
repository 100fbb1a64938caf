"""Coalescing a stream of events: the first at once, those that follow in groups."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")
MOST_WAITING = 1000
"""Events read ahead of whoever takes the groups."""


async def batches(events: AsyncIterator[T], seconds: float) -> AsyncGenerator[list[T], None]:
    """Groups of events, at least `seconds` apart but for the end; none waits longer than that. Closes `events`.

    What comes at once goes together; with no `seconds` each event goes by itself.
    """
    clock = asyncio.get_running_loop()
    group: list[T] = []
    more, room = asyncio.Event(), asyncio.Event()
    most = MOST_WAITING if seconds else 1

    async def read() -> None:
        async for event in events:
            group.append(event)
            more.set()
            while len(group) >= most:
                room.clear()
                await room.wait()

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: more.set())
    try:
        while not reading.done() or group:
            await more.wait()
            more.clear()
            if not group:
                continue
            ready, group[:] = list(group), ()
            room.set()
            due = clock.time() + seconds
            yield ready
            if not reading.done() and clock.time() < due:
                await asyncio.wait({reading}, timeout=due - clock.time())
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()

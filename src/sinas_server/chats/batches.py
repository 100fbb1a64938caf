"""Coalescing a stream of events: the first at once, those that follow in groups."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def batches(events: AsyncIterator[T], seconds: float) -> AsyncGenerator[list[T], None]:
    """Groups of events, at least `seconds` apart but for the end; none waits longer than that. Closes `events`."""
    clock = asyncio.get_running_loop()
    group: list[T] = []
    due = 0.0
    pending: asyncio.Task[T] | None = None
    try:
        while True:
            if pending is None:
                pending = asyncio.create_task(_next(events))
            wait = max(0.0, due - clock.time()) if group else None
            done, _ = await asyncio.wait({pending}, timeout=wait)
            if done:
                finished, pending = pending, None
                try:
                    group.append(finished.result())
                except StopAsyncIteration:
                    break
            if clock.time() >= due:
                ready, group, due = group, [], clock.time() + seconds
                yield ready
        if group:
            yield group
    finally:
        if pending is not None:
            pending.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration):
                await pending
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _next(events: AsyncIterator[T]) -> T:
    return await anext(events)

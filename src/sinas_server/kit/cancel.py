"""Making sure that a canceled task stops."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress


def stop_if_canceled() -> None:
    """Raise CancelledError if the current task was canceled and something in between swallowed it.

    Before Python 3.12 `asyncio.wait_for`, with which redis-py sends, does that when it is canceled just as it ends.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def to_the_end(work: Coroutine[object, object, None]) -> None:
    """Do what must be done when the current task is canceled, even if it is canceled again meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()

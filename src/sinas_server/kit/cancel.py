"""What a canceled task still does."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress


async def to_the_end(work: Coroutine[object, object, None]) -> None:
    """Do what must be done when the current task is canceled, even if it is canceled again meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()

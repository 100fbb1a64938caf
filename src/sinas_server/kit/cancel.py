"""Making sure that a canceled task stops."""

import asyncio


def stop_if_canceled() -> None:
    """Raise CancelledError if the current task was canceled and something in between swallowed it.

    Before Python 3.12 `asyncio.wait_for`, with which redis-py sends, does that when it is canceled just as it ends.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError

"""Waking workers: the queue itself is the rows in PostgreSQL, Redis only says that there is something to claim."""

from collections.abc import Sequence
from typing import Protocol


class Wake(Protocol):
    """Wakes a worker of a queue. A wake-up that is lost costs at most one polling interval, never work."""

    async def wake(self, queue: str) -> None:
        """Tell one waiting worker of `queue` that there is work."""
        ...

    async def wait(self, queues: Sequence[str], timeout_seconds: float) -> str | None:
        """Wait for a wake-up of any of `queues`; its name, or None after the timeout (or if Redis is away)."""
        ...

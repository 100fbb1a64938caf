"""Wake-ups over Redis lists: `BLPOP` hands each token to exactly one waiting worker."""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis
from redis.exceptions import RedisError

from sinas_server.backends.redis import Hints

MAX_TOKENS = 100
"""Tokens are hints; more of them than this say nothing new. Workers that are never idle leave theirs behind."""


class RedisWake:
    """`Wake` over a Redis client; `wait` needs a connection of its own, which it takes from the client's pool."""

    def __init__(self, redis: Redis, hints: Hints) -> None:
        self._redis = redis
        self._hints = hints

    async def wake(self, queue: str) -> None:
        """Push one token. A Redis that is away is no error: workers poll."""
        key = f"sinas:wake:{queue}"
        self._hints.send("LPUSH", key, "1")
        self._hints.send("LTRIM", key, "0", str(MAX_TOKENS - 1))

    async def wait(self, queues: Sequence[str], timeout_seconds: float) -> str | None:
        """Wait for a token of any of `queues`, in their order."""
        try:
            found = await self._redis.blpop([f"sinas:wake:{queue}" for queue in queues], timeout=timeout_seconds)
        except (RedisError, OSError):
            await asyncio.sleep(min(timeout_seconds, 0.2))
            return None
        key = found[0] if found else None
        return key.decode().removeprefix("sinas:wake:") if isinstance(key, bytes) else None

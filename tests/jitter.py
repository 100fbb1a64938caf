"""Makes everything that is asked of PostgreSQL and Valkey take its own time: `pytest -p tests.jitter`, to find races.

On an idle machine two statements of a transaction follow each other within a millisecond, and what happens between them
is seen once in a thousand runs, by somebody else. A test that fails only with this has found such a moment, in itself
or in the product; one that measures time may fail without cause. In the processes of this run, not those they start.
The environment's `JITTER_SEED` repeats the same draws.
"""

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import psycopg
from redis.asyncio.connection import AbstractConnection

from sinas_server.backends.db.link import Link

USUAL = (0.1, 0.02)
RARE = (0.01, 0.25)
"""How often a wait is drawn, and the longest one in seconds."""

SEED = os.environ.get("JITTER_SEED") or str(random.SystemRandom().randrange(1_000_000))
_draw = random.Random(SEED)  # noqa: S311 - no secret
Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


def pytest_report_header() -> str:
    """With which draws this run is repeated."""
    return f"JITTER_SEED={SEED}"


def pytest_configure() -> None:
    """Have every statement and every command wait."""
    for owner, name in ((Link, "run"), (psycopg.AsyncConnection, "wait"), (AbstractConnection, "send_packed_command")):
        setattr(owner, name, _slowed(getattr(owner, name)))


def _slowed(method: Callable[Asked, Awaitable[Answer]]) -> Callable[Asked, Awaitable[Answer]]:
    async def slow(*args: Asked.args, **named: Asked.kwargs) -> Answer:
        await _wait()
        answer = await method(*args, **named)
        await _wait()
        return answer

    return slow


async def _wait() -> None:
    for share, longest in (RARE, USUAL):
        if _draw.random() < share:
            await asyncio.sleep(_draw.random() * longest)
            return

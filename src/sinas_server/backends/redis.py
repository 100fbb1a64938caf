"""Connecting to Redis: what redis-py gives, but that a task which is canceled stops."""

import asyncio
from collections.abc import Iterable

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

CONNECT_SECONDS = 5.0


class CancelableConnection(AbstractConnection):
    """Redis-py sends with `asyncio.wait_for`, which before Python 3.12 swallows a cancel that comes just as it ends.

    Whoever canceled then waits for a task that goes on: for ever, if it works until it is canceled.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send, and raise `CancelledError` for a cancel that was swallowed."""
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        await super().send_packed_command(command, check_health)
        if task is not None and task.cancelling() > before:
            await self.disconnect(nowait=True)  # nobody will read the answer
            raise asyncio.CancelledError


def open_redis(url: str) -> Redis:
    """A client with as many connections as are needed at a time; connects when it is used."""
    retry = Retry(ConstantBackoff(0.05), 3)
    client: Redis = Redis.from_url(url, max_connections=None, retry=retry, socket_connect_timeout=CONNECT_SECONDS)
    pool = client.connection_pool
    pool.connection_class = type("Connection", (CancelableConnection, pool.connection_class), {})
    return client

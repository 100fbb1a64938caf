"""The client of Redis: a task that is canceled just as a command was sent stops."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection

from sinas_server.backends.redis import open_redis


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url) as client:
        yield client


async def test_a_cancel_that_comes_as_a_command_is_sent_is_not_swallowed(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = AbstractConnection._send_packed_command
    canceled = list[asyncio.Task[object]]()

    async def sent_and_canceled(connection: AbstractConnection, command: Iterable[bytes]) -> None:
        await send(connection, command)
        if canceled:
            canceled.pop().cancel()

    async def work() -> None:
        await redis.set("canceled", 1)
        raise AssertionError("it goes on")

    await redis.ping()
    monkeypatch.setattr(AbstractConnection, "_send_packed_command", sent_and_canceled)
    task = asyncio.create_task(work())
    canceled.append(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not canceled
    assert await redis.ping()


async def test_whoever_cleans_up_after_a_cancel_can_still_ask(redis: Redis) -> None:
    answers = list[object]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            answers.append(await redis.ping())
            raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert answers == [True]

"""Signals between processes, here two clients of one Valkey."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from sinas_server.backends.redis import CancelableConnection, Hints, open_redis
from sinas_server.backends.stream.redis import RedisSignals

Pair = tuple[RedisSignals, RedisSignals]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with open_redis(redis_url) as made:
        yield made


@pytest.fixture
async def pair(redis: Redis) -> AsyncIterator[Pair]:
    """One that sends and one that receives."""
    hints = Hints(redis)
    sender, receiver = RedisSignals(redis, hints), RedisSignals(redis, hints)
    running = asyncio.create_task(receiver.run())
    async with receiver.listen("ready:1") as listener:
        assert await listener.wait(10)  # as soon as it is connected everybody is woken
    yield sender, receiver
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await hints.close()


async def test_the_first_signal_of_a_sort_is_not_missed(pair: Pair) -> None:
    sender, receiver = pair
    for sort in range(20):
        async with receiver.listen(f"sort{sort}:x") as listener:
            await sender.signal(f"sort{sort}:x")
            assert await listener.wait(10)


async def test_only_its_own_topic_wakes_a_listener(pair: Pair) -> None:
    sender, receiver = pair
    async with receiver.listen("a:1") as one, receiver.listen("a:2") as two:
        await sender.signal("a:1")
        assert await one.wait(10)
        assert not await two.wait(0.05)


async def test_a_note_arrives_with_its_signal(pair: Pair) -> None:
    sender, receiver = pair
    async with receiver.listen("a:1") as listener:
        await sender.signal("a:1", b'{"a note": "with blanks"}')
        assert await listener.wait(10)
        assert listener.note == b'{"a note": "with blanks"}'
        await sender.signal("a:1")
        assert await listener.wait(10)
        assert listener.note == b""


async def test_only_sorts_that_were_listened_to_are_received(pair: Pair, redis: Redis) -> None:
    _, receiver = pair
    async with receiver.listen("a:1"), receiver.listen("a:2"), receiver.listen("b:1"):
        channels = await redis.pubsub_channels("sinas:signals:*")
    assert sorted(channels) == [b"sinas:signals:a", b"sinas:signals:b", b"sinas:signals:ready"]


async def test_a_lost_connection_wakes_everybody_and_comes_back(pair: Pair, redis: Redis) -> None:
    sender, receiver = pair
    async with receiver.listen("a:1") as old, receiver.listen("a:2") as other:
        await redis.client_kill_filter(_type="pubsub")
        assert await old.wait(10)
        assert await other.wait(10)
        await sender.signal("a:1")
        assert await old.wait(10)


async def test_another_sort_is_listened_to_while_the_connection_is_made_anew(
    pair: Pair, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = pair
    connect, asked, may = CancelableConnection.connect, asyncio.Event(), asyncio.Event()

    async def later(connection: CancelableConnection) -> None:
        asked.set()
        await may.wait()
        await connect(connection)  # type: ignore[no-untyped-call]  # redis-py's

    monkeypatch.setattr(CancelableConnection, "connect", later)
    async with asyncio.timeout(20), Redis.from_url(redis_url) as other:
        await other.client_kill_filter(_type="pubsub")
        await asked.wait()
        async with receiver.listen("new:1") as listener:
            may.set()
            assert await listener.wait(10), "something may have been missed"
            await sender.signal("new:1")
            assert await listener.wait(10)


async def test_listening_while_nothing_receives_does_not_wait(redis: Redis) -> None:
    signals = RedisSignals(redis, Hints(redis))
    async with signals.listen("a:1") as listener:
        assert not await listener.wait(0.01)

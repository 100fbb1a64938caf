"""Event streams: what is sealed gets nothing more, but for what comes after the seal."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from sinas_server.backends.stream import LAST, START, Position, StreamEvent, StreamLostError
from sinas_server.backends.stream.redis import LONGEST_SECONDS, RedisStreams


@pytest.fixture
async def streams(redis_url: str) -> AsyncIterator[RedisStreams]:
    async with Redis.from_url(redis_url) as redis:
        yield RedisStreams(redis)


def event(step: int, offset: int) -> StreamEvent:
    return StreamEvent(Position(step, offset), "message", b"{}")


async def test_a_sealed_stream_gets_only_what_comes_after_the_seal(streams: RedisStreams) -> None:
    channel, said = str(uuid4()), [event(1, 4), event(1, 9)]
    await streams.create(channel, said)
    assert await streams.seal(channel, Position(1, LAST)) == said
    await streams.append(channel, [event(1, 12), event(2, 1)])
    assert await streams.read(channel, START) == (True, [*said, event(2, 1)])


async def test_a_stream_that_is_further_is_left_as_it_is(streams: RedisStreams) -> None:
    channel, said = str(uuid4()), [event(1, 4), event(3, 2)]
    await streams.create(channel, said)
    assert await streams.seal(channel, Position(1, LAST)) == said
    await streams.append(channel, [event(3, 5)])
    assert await streams.read(channel, START) == (True, [*said, event(3, 5)])


async def test_a_lost_stream_is_not_begun_by_its_seal(streams: RedisStreams) -> None:
    channel = str(uuid4())
    assert await streams.seal(channel, Position(1, LAST)) == []
    assert await streams.read(channel, START) == (False, [])
    with pytest.raises(StreamLostError):
        await streams.append(channel, [event(1, 4)])


async def test_a_stream_whose_writer_dies_is_not_kept_for_ever(streams: RedisStreams, redis_url: str) -> None:
    channel = str(uuid4())
    await streams.create(channel, [event(1, 4)])
    await streams.append(channel, [event(1, 9)])
    async with Redis.from_url(redis_url) as redis:
        assert 0 < await redis.ttl(f"sinas:stream:{channel}") <= LONGEST_SECONDS

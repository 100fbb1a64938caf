"""The client of Redis: a task that is canceled just as a command was sent stops; and hints that nobody waits for."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from structlog.testing import capture_logs

from sinas_server.backends import redis as redis_backend
from sinas_server.backends.redis import MAX_EARLY, Hints, connect_apart, open_redis


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


def test_a_connection_that_was_closed_a_moment_before_is_made_anew(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the event loop of our processes, which raises a RuntimeError then."""
    send = AbstractConnection._send_packed_command
    closing = list[bool]()

    async def closed_and_sent(connection: AbstractConnection, command: Iterable[bytes]) -> None:
        if closing and connection._writer is not None:
            closing.pop()
            connection._writer.transport.abort()
            await asyncio.sleep(0)
        await send(connection, command)

    async def ask() -> None:
        async with open_redis(redis_url) as client:
            await client.ping()
            closing.append(True)
            assert await client.ping()

    monkeypatch.setattr(AbstractConnection, "_send_packed_command", closed_and_sent)
    uvloop.run(ask())
    assert not closing


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


@pytest.fixture
async def hints(redis: Redis) -> AsyncIterator[Hints]:
    await redis.delete("told")
    made = Hints(redis)
    yield made
    await made.close()


async def told(redis: Redis, count: int) -> list[bytes | str]:
    """What has come, once it is so many."""
    for _ in range(1000):
        if len(found := await redis.lrange("told", 0, -1)) >= count:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"{count} did not come, only {found}")


async def test_hints_come_in_order_also_those_from_before_there_was_a_connection(redis: Redis, hints: Hints) -> None:
    for number in range(5):
        hints.send("RPUSH", "told", str(number))
    await told(redis, 5)
    for number in range(5, 10):
        hints.send("RPUSH", "told", str(number))
    assert await told(redis, 10) == [b"%d" % number for number in range(10)]


async def test_hints_go_on_after_their_connection_was_cut(redis: Redis, hints: Hints) -> None:
    hints.send("RPUSH", "told", "0")
    await told(redis, 1)
    await redis.client_kill_filter(_type="normal", skipme=True)
    for number in range(1, 1000):  # whatever is sent before the cut is known may be lost
        hints.send("RPUSH", "told", str(number))
        if len(await redis.lrange("told", 0, -1)) > 1:
            break
        await asyncio.sleep(0.01)
    assert len(await told(redis, 2)) >= 2


async def test_closing_sends_what_is_left(redis: Redis, hints: Hints) -> None:
    for number in range(1000):
        hints.send("RPUSH", "told", str(number))
    await hints.close()
    assert len(await told(redis, 1000)) == 1000


async def test_a_redis_that_is_away_loses_hints_and_nothing_else() -> None:
    async with open_redis("redis://127.0.0.1:1/0") as nowhere:
        hints = Hints(nowhere)
        for _ in range(3):
            for _ in range(2 * MAX_EARLY):
                hints.send("PUBLISH", "a", "b")
            await hints.close()


async def test_a_user_who_may_not_turn_answers_off_is_told_of(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser(
        "limited", enabled=True, nopass=True, keys=["*"], channels=["*"], categories=["+@all"], commands=["-client"]
    )
    separator = "&" if "?" in redis_url else "?"
    async with open_redis(f"{redis_url}{separator}username=limited&password=any") as client:
        hints = Hints(client)
        with capture_logs() as logs:
            hints.send("RPUSH", "told", "0")
            await hints.close()
    await redis.acl_deluser("limited")
    assert [entry["event"] for entry in logs] == [
        "nobody can be woken: allow the Redis user of the platform CLIENT REPLY"
    ]


@pytest.fixture
async def silent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    """A client of a server that takes connections and says nothing."""
    monkeypatch.setattr(redis_backend, "CONNECT_SECONDS", 0.2)
    over = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with open_redis(f"redis://127.0.0.1:{port}/0") as client, asyncio.timeout(20):
            yield client
        over.set()


async def test_closing_does_not_wait_for_a_redis_that_says_nothing(silent: Redis) -> None:
    hints = Hints(silent)
    hints.send("PUBLISH", "a", "b")
    await hints.close()


async def test_who_connects_to_a_redis_that_says_nothing_gives_up(silent: Redis) -> None:
    with pytest.raises(TimeoutError):
        await connect_apart(silent)

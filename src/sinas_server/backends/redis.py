"""Connecting to Redis: what redis-py gives, but that a canceled task stops, and hints that nobody waits for."""

import asyncio
from collections.abc import Iterable

import structlog
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

log = structlog.get_logger()
CONNECT_SECONDS = 5.0
MAX_EARLY = 1000
"""Hints that are kept while the connection is being made."""
MAX_UNSENT = 1 << 20
"""Bytes; a server that takes no more is taken for gone."""


class CancelableConnection(AbstractConnection):
    """Redis-py sends with `asyncio.wait_for`, which before Python 3.12 swallows a cancel that comes just as it ends.

    Whoever canceled then waits for a task that goes on: for ever, if it works until it is canceled.
    """

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send, and raise `CancelledError` for a cancel that was swallowed."""
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:  # of uvloop: the server closed the connection a moment before
            raise RedisConnectionError(f"the connection was closed: {error}") from error
        if task is not None and task.cancelling() > before:
            await self.disconnect(nowait=True)  # nobody will read the answer
            raise asyncio.CancelledError

    def post(self, *command: bytes | str) -> bool:
        """Send without waiting, on a connection without answers; whether it is still open."""
        if self._writer is None or self._reader is None or self._reader.at_eof() or self._writer.is_closing():
            return False
        self._writer.writelines(self.pack_command(*command))
        return self._writer.transport.get_write_buffer_size() < MAX_UNSENT


def open_redis(url: str) -> Redis:
    """A client with as many connections as are needed at a time; connects when it is used."""
    retry = Retry(ConstantBackoff(0.05), 3)
    client: Redis = Redis.from_url(url, max_connections=None, retry=retry, socket_connect_timeout=CONNECT_SECONDS)
    pool = client.connection_pool
    pool.connection_class = type("Connection", (CancelableConnection, pool.connection_class), {})
    return client


async def connect_apart(redis: Redis) -> CancelableConnection:
    """A connection outside of the client's pool, for whoever disconnects it. Raises `RedisError` and `OSError`."""
    connection: CancelableConnection = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's
    try:
        async with asyncio.timeout(CONNECT_SECONDS):  # redis-py waits for a greeting without end
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


class Hints:
    """Commands whose answers nobody needs, sent at once and without waiting: a Redis that is away loses them.

    An awaited command costs ten times as much, which is most of what waking a worker or a listener takes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connection: CancelableConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._early: list[tuple[bytes | str, ...]] = []

    def send(self, *command: bytes | str) -> None:
        """Send a command now, or as soon as the connection is made."""
        if self._connection is not None:
            if self._connection.post(*command):
                return
            lost, self._connection = self._connection, None
            self._open(lost)
        elif self._opening is None:
            self._open(None)
        if len(self._early) < MAX_EARLY:
            self._early.append(command)

    def _open(self, lost: CancelableConnection | None) -> None:
        self._opening = asyncio.create_task(self._connect(lost))

    async def _connect(self, lost: CancelableConnection | None) -> None:
        connection: CancelableConnection | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if lost is not None:
                    await lost.disconnect(nowait=True)
                connection = await connect_apart(self._redis)
                await connection.send_command("CLIENT", "REPLY", "ON")
                await connection.read_response()  # whether the next one, which has no answer, is permitted
            connection.post("CLIENT", "REPLY", "OFF")
            for command in self._early:
                connection.post(*command)
            self._connection = connection
        except (RedisError, OSError) as error:
            if connection is not None:
                await connection.disconnect(nowait=True)
            if isinstance(error, ResponseError):
                log.warning("nobody can be woken: allow the Redis user of the platform CLIENT REPLY", error=str(error))
        finally:
            self._early.clear()
            self._opening = None

    async def close(self) -> None:
        """Send what is left and disconnect."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._connection is not None:
            await self._connection.disconnect()
            self._connection = None

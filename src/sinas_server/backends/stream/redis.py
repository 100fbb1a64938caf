"""Signals over one pub/sub subscription per process, and event streams over Redis Streams."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeAlias, cast

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from sinas_server.backends.redis import CancelableConnection, Hints, connect_apart
from sinas_server.backends.stream import Position, StreamEvent, StreamLostError, StreamUnavailableError

ALWAYS = "sinas:signals"
"""Received by every process, so that there is always a subscription."""
JOIN_SECONDS = 1.0
RETRY_SECONDS = 0.2
LONGEST_SECONDS = 7 * 24 * 3600
"""How long a stream is kept whose writer dies before it could let it expire; one that is still written is made anew."""
Entries: TypeAlias = Sequence[tuple[bytes, Mapping[bytes, bytes]]]
MARK = Position(0, 1)
"""The first entry of every stream: tells a stream that is complete from one that Redis lost and a writer resumed."""
REFUSED = re.compile("no such key|smaller than")
"""What XSETID says of a stream that is gone, and of one whose last entry is further."""


class _Listener:
    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.note = b""

    async def wait(self, timeout_seconds: float) -> bool:
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.event.wait()
        except TimeoutError:
            return False
        self.event.clear()
        return True


class RedisSignals:
    """`Signals`: `run()` must be running in the process for its listeners to be woken.

    A topic `execution:...` is published on the channel of all executions, and a process receives those channels that
    it has listened to once: each message wakes a process, and most processes care for few sorts of topics.
    """

    def __init__(self, redis: Redis, hints: Hints) -> None:
        self._redis = redis
        self._hints = hints
        self._listeners: dict[str, set[_Listener]] = {}
        self._channels: dict[str, asyncio.Event] = {ALWAYS: asyncio.Event()}
        """Those to receive, and whether Redis has confirmed."""
        self._missed: set[str] = set()
        """Those of which something may have been missed until Redis confirms them."""
        self._connection: CancelableConnection | None = None

    async def signal(self, topic: str, note: bytes = b"") -> None:
        """Publish the topic's name, a blank and the note; processes without a listener ignore it."""
        self._hints.send("PUBLISH", *_signal(topic, note))

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[_Listener]:
        """Register before looking, so that nothing is missed between the look and the wait."""
        listener = _Listener()
        self._listeners.setdefault(topic, set()).add(listener)
        try:
            await self._join(_channel(topic))
            yield listener
        finally:
            listeners = self._listeners[topic]
            listeners.discard(listener)
            if not listeners:
                del self._listeners[topic]

    async def _join(self, channel: str) -> None:
        confirmed = self._channels.get(channel)
        if confirmed is None:
            confirmed = self._channels[channel] = asyncio.Event()
            if self._connection is not None:
                self._connection.post("SUBSCRIBE", channel)  # where it is lost `run` notices, and joins all again
        if self._connection is not None and not confirmed.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(JOIN_SECONDS):
                    await confirmed.wait()

    async def run(self) -> None:
        """Receive signals until canceled; reconnects for ever, waking everybody after a gap.

        On a connection that redis-py does not make anew by itself: it would do so twice at a time, and fail, when
        somebody listens to another channel meanwhile.
        """
        while True:
            with suppress(RedisError, OSError):
                await self._receive_all(await connect_apart(self._redis))
            await asyncio.sleep(RETRY_SECONDS)

    async def _receive_all(self, connection: CancelableConnection) -> None:
        """Until the connection is lost."""
        try:
            self._join_all(connection)
            while True:
                self._receive(await connection.read_response(timeout=math.inf, push_request=True))
        finally:
            self._connection = None
            await connection.disconnect(nowait=True)

    def _join_all(self, connection: CancelableConnection) -> None:
        for confirmed in self._channels.values():
            confirmed.clear()
        self._missed = set(self._channels)
        connection.post("SUBSCRIBE", *self._channels)
        self._connection = connection

    def _receive(self, message: object) -> None:
        match message:
            case [b"subscribe", bytes(name), _]:
                channel = name.decode()
                self._channels[channel].set()
                if channel in self._missed:
                    self._missed.discard(channel)
                    self._wake(channel)
            case [b"message", _, bytes(data)]:
                topic, _, note = data.partition(b" ")
                for listener in self._listeners.get(topic.decode(), ()):
                    listener.note = note
                    listener.event.set()

    def _wake(self, channel: str) -> None:
        for topic, listeners in self._listeners.items():
            if _channel(topic) == channel:
                for listener in listeners:
                    listener.event.set()


def _channel(topic: str) -> str:
    return f"{ALWAYS}:{topic.partition(':')[0]}"


def _signal(topic: str, note: bytes = b"") -> tuple[str, bytes]:
    """Where a signal is published, and what."""
    return _channel(topic), b"%b %b" % (topic.encode(), note)


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise StreamUnavailableError(str(error)) from error


class RedisStreams:
    """`EventStreams` over XADD with explicit ids and XRANGE."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, channel: str, events: Sequence[StreamEvent] = (), *, tell: Sequence[str] = ()) -> None:
        """Delete and refill in one transaction."""
        key = _key(channel)
        with _reachable():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.delete(key)
                pipe.xadd(key, {b"n": b"", b"d": b""}, id=str(MARK))
                for event in events:
                    pipe.xadd(key, _fields(event), id=str(event.position))
                pipe.expire(key, LONGEST_SECONDS)
                for topic in tell:
                    pipe.publish(*_signal(topic))
                await pipe.execute()

    async def append(self, channel: str, events: Sequence[StreamEvent], *, tell: Sequence[str] = ()) -> None:
        """XADD NOMKSTREAM: a stream that is gone is noticed rather than begun in the middle."""
        key = _key(channel)
        with _reachable():
            async with self._redis.pipeline(transaction=False) as pipe:
                for event in events:
                    pipe.xadd(key, _fields(event), id=str(event.position), nomkstream=True)
                for topic in tell:
                    pipe.publish(*_signal(topic))
                answers = await pipe.execute(raise_on_error=False)
        for answer in answers[: len(events)]:
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                continue  # sent before, and only the answer was lost; or sealed
            if isinstance(answer, Exception):
                raise answer
            if answer is None:
                raise StreamLostError(channel)

    async def read(self, channel: str, after: Position) -> tuple[bool, list[StreamEvent]]:
        """XRANGE from the next id on; the mark is never shown."""
        key, start = _key(channel), max(after, MARK)
        with _reachable():
            entries = cast(Entries, await self._redis.xrange(key, min=f"({start}"))
            exists = bool(entries) or bool(await self._redis.exists(key))
        return exists, _events(entries)

    async def seal(self, channel: str, upto: Position) -> list[StreamEvent]:
        """XSETID and XRANGE in one transaction; a stream that is gone or further already is left as it is."""
        key = _key(channel)
        with _reachable():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.execute_command("XSETID", key, str(upto))
                pipe.xrange(key, min=f"({MARK}")
                sealed, entries = await pipe.execute(raise_on_error=False)
        if isinstance(entries, Exception):
            raise entries
        if isinstance(sealed, Exception) and not (isinstance(sealed, ResponseError) and REFUSED.search(str(sealed))):
            raise sealed
        return _events(entries)

    async def drop(self, channel: str) -> None:
        """DEL."""
        with _reachable():
            await self._redis.delete(_key(channel))

    async def expire(self, channel: str, seconds: int) -> None:
        """EXPIRE."""
        with _reachable():
            await self._redis.expire(_key(channel), seconds)


def _events(entries: Entries) -> list[StreamEvent]:
    return [
        StreamEvent(Position.parse(entry.decode()), fields[b"n"].decode(), fields[b"d"]) for entry, fields in entries
    ]


def _key(channel: str) -> str:
    return f"sinas:stream:{channel}"


Encodable = bytes | bytearray | memoryview | str | int | float


def _fields(event: StreamEvent) -> dict[Encodable, Encodable]:
    return {b"n": event.name.encode(), b"d": event.data}

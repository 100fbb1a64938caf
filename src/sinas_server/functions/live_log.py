"""What an execution prints while it runs: published once somebody watches, and followed from the API.

A watcher asks for it with a signal; until then the worker only remembers what was printed, so that executions nobody
watches cost nothing. The whole output is in the row at the end, from which a watcher gets whatever he missed.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Literal
from uuid import UUID

import orjson
from sqlalchemy import Row, Select, select
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db import is_lost
from sinas_server.backends.stream import START, Position, StreamEvent, StreamLostError, StreamUnavailableError
from sinas_server.functions.tables import ENDED, ExecutionRow, Status
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit import sse

StreamName = Literal["stdout", "stderr"]
NAMES: tuple[StreamName, ...] = ("stdout", "stderr")
COALESCE_SECONDS = 0.1
IDLE_SECONDS = 1.0
"""After this long without output a watcher asks again, and looks whether it has ended."""
PING_SECONDS = 10.0
ASK_SECONDS = 60.0
AFTERWARDS_SECONDS = 60


def _channel(execution_id: UUID) -> str:
    return f"execution-log:{execution_id}"


def _more_topic(execution_id: UUID) -> str:
    """The signal that there is more to read."""
    return f"execution-log:{execution_id}"


def _watch_topic(execution_id: UUID) -> str:
    """The signal that somebody watches."""
    return f"execution-watch:{execution_id}"


class LiveLog:
    """The output of one attempt, in its worker."""

    def __init__(self, runtime: Runtime, row: ExecutionRow) -> None:
        self._runtime = runtime
        self._row = row
        self._channel = _channel(row.id)
        self._parts: list[tuple[StreamName, str, int]] = []
        """What was printed, each with the characters up to its end."""
        self._task: asyncio.Task[None] | None = None
        self._published = self._closed = False

    def on_output(self, stream: StreamName, text: str) -> None:
        """Take what was printed (`OnOutput`); not of a thread that goes on although its attempt is over."""
        if self._closed:
            return
        before = self._parts[-1][2] if self._parts else 0
        self._parts.append((stream, text, before + len(text)))
        if self._task is None:
            self._task = asyncio.create_task(self._publish())

    async def close(self) -> None:
        """Stop: the attempt is over, and watchers find the rest in the row."""
        self._closed = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._published:
            await self._runtime.signals.signal(_more_topic(self._row.id))
            with suppress(StreamUnavailableError):
                await self._runtime.streams.expire(self._channel, AFTERWARDS_SECONDS)

    async def _publish(self) -> None:
        async with self._runtime.signals.listen(_watch_topic(self._row.id)) as asked:
            while not await asked.wait(ASK_SECONDS):
                pass
            sent, is_asked = 0, True
            while True:
                try:
                    sent = await self._send(sent, check=is_asked)
                except StreamLostError:
                    sent = 0
                except StreamUnavailableError:
                    await asyncio.sleep(IDLE_SECONDS)
                is_asked = await asked.wait(COALESCE_SECONDS)

    async def _send(self, sent: int, *, check: bool) -> int:
        """Publish what was printed after the first `sent` parts, all if the stream is not there; how many it was."""
        streams, ready = self._runtime.streams, len(self._parts)
        if check and not (await streams.read(self._channel, Position(self._row.attempt, self._parts[-1][2])))[0]:
            sent = 0
        if sent == ready:
            return sent
        events = list(self._events(sent, ready))
        if sent == 0:
            self._published = True  # first: it may be stopped in the middle
            await streams.create(self._channel, events)
            await streams.expire(self._channel, int(self._row.timeout) + AFTERWARDS_SECONDS)
        else:
            await streams.append(self._channel, events)
        await self._runtime.signals.signal(_more_topic(self._row.id))
        return ready

    def _events(self, first: int, last: int) -> Iterator[StreamEvent]:
        """These parts, those of one stream in a row as one event."""
        for stream, parts in groupby(self._parts[first:last], key=itemgetter(0)):
            run = list(parts)
            data = orjson.dumps({"stream": stream, "output": "".join(text for _, text, _ in run)})
            yield StreamEvent(Position(self._row.attempt, run[-1][2]), "log", data)


@dataclass
class _Seen:
    """What a watcher has got so far."""

    attempt: int = 0
    lengths: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))

    def restart(self, attempt: int) -> list[bytes]:
        """Begin another attempt: what to tell, if something was told before."""
        before, self.attempt = self.attempt, attempt
        self.lengths = dict.fromkeys(NAMES, 0)
        return [sse.event("restart", {"attempt": attempt})] if before else []

    @property
    def length(self) -> int:
        """How much of the attempt."""
        return sum(self.lengths.values())

    def new(self, output: str, end: Position) -> str:
        """What of it was not there before: what is published anew comes in other pieces."""
        return output[max(0, self.length - (end.offset - len(output))) :]

    def log(self, stream: str, output: str) -> bytes:
        """More of the attempt."""
        self.lengths[stream] += len(output)
        event_id = str(Position(self.attempt, self.length))
        return sse.event("log", {"stream": stream, "output": output, "attempt": self.attempt}, event_id)

    def rest(self, row: ExecutionRow) -> Iterator[bytes]:
        """What is left of an execution that has ended, and its end."""
        kept = {"stdout": row.stdout, "stderr": row.stderr}
        cut = any(len(kept[name]) < self.lengths[name] for name in NAMES)
        if row.attempt != self.attempt and row.status != Status.CANCELLED:
            yield from self.restart(row.attempt)
        elif cut:  # of one that was cancelled no output is kept
            kept = dict.fromkeys(NAMES, "")
        for name in NAMES:
            if output := kept[name][self.lengths[name] :]:
                yield self.log(name, output)
        yield sse.event("done", {"status": row.status, "error": row.error})


async def follow(runtime: Runtime, execution_id: UUID, after: Position) -> AsyncIterator[bytes]:
    """What an execution prints, from its start or after a position, until its end, as server-sent events.

    Holds no database connection. `restart` says that another attempt begins to print anew.
    """
    seen, last = _Seen(), START
    clock = asyncio.get_running_loop()
    told = clock.time()
    async with runtime.signals.listen(_more_topic(execution_id)) as more:
        while True:
            status = await _status(runtime, execution_id)
            if status is not None and status not in ENDED:
                await runtime.signals.signal(_watch_topic(execution_id))
            for event in await _read(runtime, execution_id, last):
                last = event.position
                blocks = seen.restart(last.step) if last.step != seen.attempt else []
                printed = orjson.loads(event.data)
                stream, output = printed["stream"], seen.new(printed["output"], last)
                had = max(0, after.offset - last.offset + len(output)) if after.step == last.step else 0
                if had and output:
                    seen.log(stream, output[:had])
                if output[had:]:
                    blocks.append(seen.log(stream, output[had:]))
                for block in blocks if last > after else ():
                    told = clock.time()
                    yield block
            if status is None or status in ENDED:
                for block in await _end(runtime, execution_id, seen):
                    yield block
                return
            if not await more.wait(IDLE_SECONDS) and clock.time() - told > PING_SECONDS:
                told = clock.time()
                yield sse.PING


async def _end(runtime: Runtime, execution_id: UUID, seen: _Seen) -> list[bytes]:
    rows = await _patiently(runtime, select(*ExecutionRow.__table__.columns).where(ExecutionRow.id == execution_id))
    if not rows:
        return [sse.event("error", {"error": "the execution was deleted"})]
    return list(seen.rest(ExecutionRow.loaded(rows[0]._asdict())))


async def _read(runtime: Runtime, execution_id: UUID, after: Position) -> list[StreamEvent]:
    try:
        return (await runtime.streams.read(_channel(execution_id), after))[1]
    except StreamUnavailableError:
        return []


async def _status(runtime: Runtime, execution_id: UUID) -> str | None:
    """Where the execution stands; None if it was deleted."""
    rows = await _patiently(runtime, select(ExecutionRow.status).where(ExecutionRow.id == execution_id))
    return str(rows[0][0]) if rows else None


async def _patiently(runtime: Runtime, query: Select[*tuple[object, ...]]) -> Sequence[Row[*tuple[object, ...]]]:
    """The rows of a query, waiting for a database that is away."""
    while True:
        try:
            return await runtime.database.read(query)
        except SQLAlchemyError as error:
            if not is_lost(error):
                raise
            await asyncio.sleep(IDLE_SECONDS)


async def collect(runtime: Runtime, row: ExecutionRow) -> dict[str, str]:
    """The output of an execution so far, by stream: of one that runs, what its worker tells within a second."""
    if row.status != Status.RUNNING:
        return {"stdout": row.stdout, "stderr": row.stderr}
    async with runtime.signals.listen(_more_topic(row.id)) as more:
        await runtime.signals.signal(_watch_topic(row.id))
        await more.wait(IDLE_SECONDS)
    output: dict[str, str] = dict.fromkeys(NAMES, "")
    for event in await _read(runtime, row.id, Position(row.attempt, 0)):
        printed = orjson.loads(event.data)
        output[printed["stream"]] += printed["output"]
    return output

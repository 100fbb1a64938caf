"""How many shared workers there are to be, in the database, and what each function worker has of them, in Redis.

The API has no pool: it writes what is wanted, and every function worker brings its share about.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from pydantic import BaseModel, Field, ValidationError
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.sandbox import SandboxUnavailable
from sinas_server.backends.stream import Listener
from sinas_server.functions.tables import SharedPoolRow
from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.heartbeat import read_heartbeats
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

if TYPE_CHECKING:
    from sinas_server.backends.sandbox.shared import SharedPool

log = structlog.get_logger()
TOPIC = "shared_workers:wanted"
"""The signal that something else is wanted."""
LOOK_SECONDS = 5.0
REPORT_SECONDS = 1.0
LIFE_SECONDS = 30
REPORTS = "sinas:shared_workers"


class WorkerReport(BaseModel):
    """A shared worker."""

    pid: int = Field(description="Its process on its host.")
    status: str = Field(description="`idle`, `busy`, or `draining`: it gets no more and ends with its last execution.")
    created_at: str = Field(description="When it was started.")
    executions: int = Field(description="How many executions it has taken up.")


class PoolReport(BaseModel):
    """The shared workers of one function worker."""

    worker: str = Field(description="The function worker.")
    share: int = Field(description="How many it is to have.")
    generation: int = Field(description="The last reload that it carried out.")
    replaced: int = Field(description="How many workers that reload replaced.")
    problem: str | None = Field(description="Why that reload failed.")
    workers: list[WorkerReport] = Field(description="Those there are.")


def container_name(worker: str, process: str) -> str:
    """What a shared worker is called among containers, by its function worker and its process id."""
    return f"sinas-shared-{worker}-{process}"


async def read_wanted(db: Db) -> SharedPoolRow | None:
    """What was asked for; None if nobody ever did."""
    return await db.get(SharedPoolRow, 1)


async def want(db: Db, runtime: Runtime, *, count: int | None = None, reload: bool = False) -> SharedPoolRow:
    """Ask for another number of workers, or for their replacement, after this transaction."""
    first = {"id": 1, "count": runtime.settings.default_worker_count}
    await db.execute(insert(SharedPoolRow).values(**first).on_conflict_do_nothing())
    row = (await db.scalars(select(SharedPoolRow).where(SharedPoolRow.id == 1).with_for_update())).one()
    row.count = row.count if count is None else count
    row.generation += reload
    await db.flush()
    db.after_commit(lambda: runtime.signals.signal(TOPIC))
    return row


async def read_reports(runtime: Runtime) -> list[PoolReport]:
    """What the function workers that are alive have. Raises `UnavailableError` while Redis is away."""
    names = [beat.name for beat in await read_heartbeats(runtime) if beat.queue == "functions"]
    try:
        found = await runtime.redis.mget([f"{REPORTS}:{name}" for name in names]) if names else []
    except (RedisError, OSError) as error:
        raise UnavailableError("Redis does not answer: what workers there are is not known") from error
    reports: list[PoolReport] = []
    for text in found:
        if text is not None:
            with suppress(ValidationError):  # of another version
                reports.append(PoolReport.model_validate_json(text))
    return reports


class SharedWorkers:
    """Keeps the pool of a function worker at what is wanted, and reports what it has."""

    def __init__(self, runtime: Runtime, pool: "SharedPool") -> None:
        self._runtime = runtime
        self._pool = pool
        self._share = 0
        self._generation: int | None = None
        self._replaced = 0
        self._problem: str | None = None

    async def follow(self) -> None:
        """Until canceled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._report())
            async with self._runtime.signals.listen(TOPIC) as listener:
                while True:
                    await self._reconcile(listener)

    async def _reconcile(self, listener: Listener) -> None:
        with suppress(SQLAlchemyError, UnavailableError):  # it stays as it is until they are back
            async with self._runtime.database.unit() as db:
                row = await read_wanted(db)
            beats = [beat.name for beat in await read_heartbeats(self._runtime) if beat.queue == "functions"]
            count = self._runtime.settings.default_worker_count if row is None else row.count
            share = share_of(count, beats, self._runtime.worker_name)
            if share != self._share:
                self._share = share
                await self._pool.scale(share)
            if row is not None:
                self._pool.warm()  # somebody cares
            await self._reload(0 if row is None else row.generation)
        await listener.wait(LOOK_SECONDS)

    async def _reload(self, generation: int) -> None:
        if self._generation is not None and generation > self._generation:
            try:
                self._replaced, self._problem = await self._pool.reload(), None
            except SandboxUnavailable as error:
                self._replaced, self._problem = 0, str(error)
                log.warning("shared workers not reloaded", error=str(error))
        self._generation = generation

    async def _report(self) -> None:
        key = f"{REPORTS}:{self._runtime.worker_name}"
        try:
            while True:
                with suppress(RedisError, OSError):
                    await self._runtime.redis.set(key, self._seen().model_dump_json(), ex=LIFE_SECONDS)
                await asyncio.sleep(REPORT_SECONDS)
        finally:
            with suppress(RedisError, OSError):
                await self._runtime.redis.delete(key)

    def _seen(self) -> PoolReport:
        return PoolReport(
            worker=self._runtime.worker_name,
            share=self._share,
            generation=self._generation or 0,
            replaced=self._replaced,
            problem=self._problem,
            workers=[
                WorkerReport(
                    pid=state.pid,
                    status="draining" if state.draining else "busy" if state.running else "idle",
                    created_at=state.created_at.isoformat(),
                    executions=state.executions,
                )
                for state in self._pool.workers()
            ],
        )


def share_of(count: int, workers: Sequence[str], me: str) -> int:
    """How many of `count` shared workers the function worker `me` is to have; all together, `count`."""
    known = sorted({*workers, me})
    return count // len(known) + (known.index(me) < count % len(known))

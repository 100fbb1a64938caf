"""A table of work and what its rows do when they run, for tests of workers."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

from sqlalchemy import MetaData, create_engine, delete, func, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.job import Claim, Job, Worker, wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import Base, Leased, queue_index

QUEUE = "test-work"
PATIENCE = 40.0
"""How long a test waits, at most, for what must happen."""
LONG = 600
"""Seconds of a lease that ends in no test, however long the machine lets the worker wait that is to renew it."""


class _Apart(Base):
    __abstract__ = True
    metadata = MetaData()  # no part of the platform's schema


class WorkRow(Leased, _Apart):
    """A row of work for these tests."""

    __tablename__ = "test_work"
    __table_args__ = (queue_index("test_work"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str]
    error: Mapped[str | None]


class Scene:
    """What the rows do when they run, and what happened."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.canceled: list[str] = []
        self.interrupted: list[str] = []
        self.now: set[str] = set()
        self.most = 0
        self.doors: dict[str, asyncio.Event] = {}
        self.tails: dict[str, asyncio.Event] = {}
        """Rows of these names go on, after their end is stored, until the event is set."""
        self.told: list[str] = []
        self.troubles: dict[str, Callable[[], Awaitable[None]]] = {}
        self.job = Job(queue=QUEUE, table=WorkRow, run=self._run, fail=self._fail)

    def hold(self, name: str) -> asyncio.Event:
        """Rows of this name run until the event is set."""
        return self.doors.setdefault(name, asyncio.Event())

    async def _run(self, runtime: Runtime, claim: Claim[WorkRow]) -> None:
        name = claim.row.name
        assert name not in self.now, "one row runs twice at a time"
        self.now.add(name)
        self.begun.append(name)
        self.most = max(self.most, len(self.now))
        if claim.interrupted:
            self.interrupted.append(name)
        try:
            if name in self.troubles and claim.row.attempt == 1:
                await self.troubles[name]()
            if name in self.doors:
                await self.doors[name].wait()
            done = update(WorkRow).where(
                WorkRow.id == claim.row.id, WorkRow.attempt == claim.row.attempt, WorkRow.status == "RUNNING"
            )
            if await runtime.database.rows(done.values(status="COMPLETED").returning(WorkRow.id)):
                self.ended.append(name)
            if name in self.tails:
                await self.tails[name].wait()
                self.told.append(name)
        except asyncio.CancelledError:
            self.canceled.append(name)
            raise
        finally:
            self.now.discard(name)

    async def _fail(self, runtime: Runtime, claim: Claim[WorkRow], error: str) -> None:
        await runtime.database.rows(
            update(WorkRow).where(WorkRow.id == claim.row.id).values(status="FAILED", error=error)
        )

    def lease(self, seconds: int) -> None:
        """Have the leases of the workers that start from now on last so long."""
        settings = self.runtime.settings.model_copy(update={"job_lease_seconds": seconds})
        self.runtime = dataclasses.replace(self.runtime, settings=settings)

    async def run_out(self, name: str) -> None:
        """Let the lease of a row have ended a minute ago."""
        past = update(WorkRow).where(WorkRow.name == name).values(lease_until=func.now() - timedelta(seconds=60))
        await self.runtime.database.rows(past)

    async def add(self, name: str, *, depth: int = 0, wakes: bool = True, background: bool = False) -> UUID:
        """A row that is due."""
        values = {"name": name, "depth": depth, "background": background, "run_at": func.clock_timestamp()}
        statement = insert(WorkRow).values(values).returning(WorkRow.id)
        row_id: UUID = (await self.runtime.database.rows(statement))[0].id
        if wakes:
            await wake(self.runtime, QUEUE, depth)
        return row_id

    async def row(self, name: str) -> WorkRow:
        async with self.runtime.database.unit() as db:
            return (await db.execute(select(WorkRow).where(WorkRow.name == name))).scalar_one()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not true():
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def worker(self, slots: int = 2, name: str = "one") -> AsyncIterator[Worker[WorkRow]]:
        made = Worker(dataclasses.replace(self.runtime, worker_name=name), self.job, slots)
        task = asyncio.create_task(made.run())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def die(self, worker: Worker[WorkRow]) -> None:
        """Its rows look as after `kill -9`: nobody runs them, and they are still claimed."""
        object.__setattr__(worker, "_release_own", _nothing)
        object.__setattr__(worker, "_expire_lease", _nothing)
        for task in list(worker.running.values()):
            task.cancel()


async def _nothing(*_: object) -> None:
    return None


async def new_scene(runtime: Runtime) -> Scene:
    """An empty table, for workers whose leases last three seconds."""
    engine = create_engine(runtime.settings.sqlalchemy_url)
    _Apart.metadata.create_all(engine)
    engine.dispose()
    await runtime.database.rows(delete(WorkRow))
    scene = Scene(runtime)
    scene.lease(3)
    return scene

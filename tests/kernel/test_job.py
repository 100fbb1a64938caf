"""Workers over a table of their own, on the real servers: nothing runs twice, and nothing is lost."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy import Executable, MetaData, create_engine, delete, func, insert, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel import job
from sinas_server.kernel.job import Claim, InterruptedWorkError, Job, Worker, cancel_topic, wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import Base, Leased, queue_index
from sinas_server.settings import Settings

QUEUE = "test-work"
PATIENCE = 40.0
"""How long a test waits, at most, for what must happen."""


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

    async def add(self, name: str, *, depth: int = 0, wakes: bool = True) -> UUID:
        """A row that is due."""
        statement = insert(WorkRow).values(name=name, depth=depth, run_at=func.clock_timestamp()).returning(WorkRow.id)
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


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"job_lease_seconds": 3})


@pytest.fixture
async def scene(runtime: Runtime) -> Scene:
    url = runtime.settings.sqlalchemy_url
    engine = create_engine(url)
    _Apart.metadata.create_all(engine)
    engine.dispose()
    await runtime.database.rows(delete(WorkRow))
    return Scene(runtime)


async def test_first_in_first_out(scene: Scene) -> None:
    names = [f"row-{number}" for number in range(8)]
    for name in names:
        await scene.add(name)
    async with scene.worker(slots=1):
        await scene.until(lambda: len(scene.ended) == len(names))
    assert scene.begun == scene.ended == names


async def test_no_more_than_its_slots(scene: Scene) -> None:
    for number in range(6):
        scene.hold(f"row-{number}")
        await scene.add(f"row-{number}")
    async with scene.worker(slots=2) as worker:
        await scene.until(lambda: len(scene.now) == 2)
        await asyncio.sleep(job.POLL_SECONDS * 1.5)
        assert scene.most == 2 == len(worker.running)
        for door in scene.doors.values():
            door.set()
        await scene.until(lambda: len(scene.ended) == 6)
    assert scene.most == 2


async def test_nested_work_passes_the_limit(scene: Scene) -> None:
    """Fifty rows that others wait for start at once although every slot is taken."""
    scene.hold("parent")
    await scene.add("parent")
    async with scene.worker(slots=1):
        await scene.until(lambda: "parent" in scene.now)
        for number in range(50):
            scene.hold(f"child-{number}")
            await scene.add(f"child-{number}", depth=1)
        await scene.add("outsider")
        await scene.until(lambda: len(scene.now) == 51)
        assert "outsider" not in scene.begun
        for door in scene.doors.values():
            door.set()
        await scene.until(lambda: len(scene.ended) == 52)


async def test_nested_work_does_not_wait_for_the_poll_when_slots_are_free(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "POLL_SECONDS", PATIENCE)
    for number in range(6):
        await scene.add(f"child-{number}", depth=1, wakes=False)
    await wake(scene.runtime, QUEUE, 1)
    async with scene.worker(slots=1):
        async with asyncio.timeout(PATIENCE / 2):
            await scene.until(lambda: len(scene.ended) == 6)


async def test_a_lost_lease_is_handed_over_once(scene: Scene) -> None:
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one") as first:
        await scene.until(lambda: "row" in scene.now)
        await scene.die(first)
        async with scene.worker(name="two"), scene.worker(name="three"):
            await scene.until(lambda: len(scene.begun) == 2)
            await asyncio.sleep(job.POLL_SECONDS * 2)
            assert scene.begun == ["row", "row"]
            scene.doors["row"].set()
            await scene.until(lambda: scene.ended == ["row"])
    row = await scene.row("row")
    assert (row.status, row.attempt) == ("COMPLETED", 2)
    assert scene.interrupted == ["row"]


async def test_a_lease_is_kept_while_the_work_goes_on(scene: Scene) -> None:
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one"), scene.worker(name="two"):
        await scene.until(lambda: "row" in scene.now)
        await asyncio.sleep(4.5)  # longer than the lease
        assert scene.begun == ["row"]
        scene.doors["row"].set()
        await scene.until(lambda: scene.ended == ["row"])


async def test_its_own_work_is_not_claimed_again_when_its_lease_ran_out(scene: Scene) -> None:
    """As after a database that was away for longer than the lease."""
    scene.hold("row")
    row_id = await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: "row" in scene.now)
        past = update(WorkRow).where(WorkRow.id == row_id).values(lease_until=func.now() - timedelta(seconds=60))
        await scene.runtime.database.rows(past)
        await asyncio.sleep(job.POLL_SECONDS * 3)
        scene.doors["row"].set()
        await scene.until(lambda: scene.ended == ["row"])
    assert (scene.begun, scene.canceled) == (["row"], [])


async def test_two_workers_never_run_one_row_twice(scene: Scene) -> None:
    names = {f"row-{number}" for number in range(60)}
    async with scene.worker(4, "one"), scene.worker(4, "two"), scene.worker(4, "three"):
        await asyncio.gather(*(scene.add(name) for name in names))
        await scene.until(lambda: len(scene.ended) == len(names))
    assert sorted(scene.begun) == sorted(scene.ended) == sorted(names)


@pytest.mark.parametrize("statement", [update(WorkRow).values(status="CANCELLED"), delete(WorkRow)])
async def test_cancel_stops_it(scene: Scene, statement: Executable) -> None:
    scene.hold("row")
    await scene.add("row")
    async with scene.worker() as worker:
        await scene.until(lambda: "row" in scene.now)
        await scene.runtime.database.rows(statement)
        await scene.runtime.signals.signal(cancel_topic(QUEUE))
        await scene.until(lambda: scene.canceled == ["row"] and not worker.running)
        await scene.add("next")
        await scene.until(lambda: scene.ended == ["next"])


async def test_what_has_ended_may_tell_so_though_others_are_canceled(scene: Scene) -> None:
    """A look at what is still its own finds the row of a run that is still at work neither running nor canceled."""
    scene.tails["ended"] = asyncio.Event()
    scene.hold("other")
    await scene.add("ended")
    other = await scene.add("other")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["ended"] and "other" in scene.now)
        await scene.runtime.database.rows(update(WorkRow).where(WorkRow.id == other).values(status="CANCELLED"))
        await scene.runtime.signals.signal(cancel_topic(QUEUE))
        await scene.until(lambda: scene.canceled == ["other"])
        scene.tails["ended"].set()
        await scene.until(lambda: scene.told == ["ended"])
    assert scene.canceled == ["other"]


async def test_cancel_works_without_the_signal(scene: Scene) -> None:
    scene.hold("row")
    row_id = await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: "row" in scene.now)
        await scene.runtime.database.rows(update(WorkRow).where(WorkRow.id == row_id).values(status="CANCELLED"))
        await scene.until(lambda: scene.canceled == ["row"])


@pytest.fixture
def no_looks(scene: Scene) -> None:
    """Workers look whether their rows are still theirs only when they are told to."""
    settings = scene.runtime.settings.model_copy(update={"job_lease_seconds": 100_000})
    scene.runtime = dataclasses.replace(scene.runtime, settings=settings)


@pytest.mark.usefixtures("no_looks")
async def test_cancel_stops_what_is_just_being_claimed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is claimed, and its worker has not heard of it yet, when it is canceled and the worker told."""
    database, claimed, heard = scene.runtime.database, asyncio.Event(), asyncio.Event()

    async def direct(statement: Executable, parameters: dict[str, Any]) -> Sequence[Any]:
        rows = await real(statement, parameters)
        if rows:
            claimed.set()
            await heard.wait()
        return rows

    real = database.direct
    monkeypatch.setattr(database, "direct", direct)
    scene.hold("row")
    row_id = await scene.add("row")
    async with scene.worker() as worker:
        async with asyncio.timeout(PATIENCE):
            await claimed.wait()
        await database.rows(update(WorkRow).where(WorkRow.id == row_id).values(status="CANCELLED"))
        await scene.runtime.signals.signal(cancel_topic(QUEUE))
        async with asyncio.timeout(PATIENCE):
            while not worker._claiming._waiters:  # the one who was told waits for the claim's end
                await asyncio.sleep(0.01)
        heard.set()
        await scene.until(lambda: scene.canceled == ["row"] and not worker.running)
    assert (await scene.row("row")).status == "CANCELLED"


async def test_a_lost_wake_up_only_delays(scene: Scene) -> None:
    async with scene.worker():
        await scene.add("row", wakes=False)
        await scene.until(lambda: scene.ended == ["row"])


async def test_redis_away_and_back(scene: Scene) -> None:
    """Every connection is cut and new ones are refused for a while."""
    url = scene.runtime.settings.redis_url.get_secret_value()
    async with scene.worker(), Redis.from_url(url, single_connection_client=True) as control:
        await scene.add("before")
        await scene.until(lambda: scene.ended == ["before"])
        await control.config_set("maxclients", 1)
        try:
            for sort in ("normal", "pubsub"):
                await control.client_kill_filter(_type=sort, skipme=True)
            await scene.add("during")
            await scene.until(lambda: scene.ended == ["before", "during"])
        finally:
            await control.config_set("maxclients", 1000)
        await scene.add("after")
        await scene.until(lambda: scene.ended == ["before", "during", "after"])


async def test_a_killed_database_connection(scene: Scene) -> None:
    """All connections are terminated while a row runs: it goes on from its row, once."""

    async def kill() -> None:
        await scene.runtime.database.rows(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
        )

    scene.troubles["row"] = kill
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["row"])
        await scene.add("next")
        await scene.until(lambda: scene.ended == ["row", "next"])
    assert (await scene.row("row")).attempt == 2
    assert scene.interrupted == ["row"]


async def test_interrupted_work_is_given_back(scene: Scene) -> None:
    async def lost() -> None:
        raise InterruptedWorkError("the stream is away")

    scene.troubles["row"] = lost
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["row"])
    row = await scene.row("row")
    assert (row.attempt, row.error, scene.interrupted) == (2, None, ["row"])


async def test_a_failure_is_stored(scene: Scene) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("by zero")

    scene.troubles["row"] = broken
    await scene.add("row")
    async with scene.worker() as worker:
        await scene.until(lambda: bool(scene.begun) and not worker.running)
    row = await scene.row("row")
    assert (row.status, row.error) == ("FAILED", "ZeroDivisionError: by zero")


async def test_stopping_gives_rows_back(scene: Scene) -> None:
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one"):
        await scene.until(lambda: "row" in scene.now)
    assert scene.canceled == ["row"]
    row = await scene.row("row")
    assert row.status == "RUNNING"
    assert row.lease_until is not None
    scene.doors["row"].set()
    async with scene.worker(name="two"):
        async with asyncio.timeout(PATIENCE):
            await scene.until(lambda: scene.ended == ["row"])
    assert (await scene.row("row")).attempt == 2


async def test_a_restart_under_the_same_name_takes_over_at_once(scene: Scene, settings: Settings) -> None:
    scene.runtime = dataclasses.replace(
        scene.runtime, settings=settings.model_copy(update={"job_lease_seconds": 10 * PATIENCE})
    )
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one") as first:
        await scene.until(lambda: "row" in scene.now)
        await scene.die(first)
    scene.doors["row"].set()
    async with scene.worker(name="one"):
        await scene.until(lambda: scene.ended == ["row"])
    assert scene.interrupted == ["row"]


async def test_a_worker_starts_while_the_database_is_busy(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that fails is logged and tried again."""
    claim = Worker._claim
    failures = iter([True])

    async def sometimes(self: Worker[WorkRow], most: int) -> list[Claim[WorkRow]]:
        if next(failures, False):
            await self.runtime.database.rows(text("SELECT 1 / 0"))
        return await claim(self, most)

    monkeypatch.setattr(Worker, "_claim", sometimes)
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["row"])

"""Workers: claiming rows that are due, running them under a lease, and giving lost ones to another worker.

A row owns its claim, attempts and end (`Leased`). Redis only wakes; a worker also looks by itself every second, so a
wake-up that is lost delays work and loses none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar
from uuid import UUID

import structlog
from sqlalchemy import (
    ARRAY,
    Boolean,
    Executable,
    Float,
    Integer,
    Text,
    Uuid,
    all_,
    and_,
    bindparam,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.dml import ReturningUpdate

from sinas_server.backends.db import is_lost, is_passing
from sinas_server.backends.db.direct import constant
from sinas_server.kernel.heartbeat import Load, PoolStats
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import CANCELED, TAKEN, Base

log = structlog.get_logger()
POLL_SECONDS = 1.0
BACKGROUND_SHARE = 4
"""Every so-manieth look for work takes what runs in the background first, so that it comes to its end too."""
MAX_NESTED = 200
"""How many nested executions a worker runs beyond its slots."""
R = TypeVar("R", bound=Base)


class InterruptedWorkError(Exception):
    """A server the work needs went away: give the row back, another attempt goes on from what is stored."""


@dataclass(frozen=True)
class Claim(Generic[R]):
    """A row that this worker holds until its lease ends."""

    row: R
    interrupted: bool
    """Whether an earlier worker was lost while running it."""
    slot: "Slot"
    found: Mapping[str, Any]
    """What the job's own part of the claiming statement gave beside the row."""


class Slot:
    """The place of a claimed row among those that a worker runs at a time."""

    def __init__(self, others: set[UUID], row_id: UUID, on_change: Callable[[], None]) -> None:
        self._others = others
        self._row_id = row_id
        self._on_change = on_change

    @contextmanager
    def left(self) -> Iterator[None]:
        """While the block waits for a person, another row may run; it is taken back even if no slot is free then."""
        self._others.add(self._row_id)
        self._on_change()
        try:
            yield
        finally:
            self._others.discard(self._row_id)
            self._on_change()


@dataclass(frozen=True)
class Job(Generic[R]):
    """One sort of queued work: the table that holds it and what to do with a claimed row."""

    queue: str
    table: type[R]
    run: Callable[[Runtime, Claim[R]], Awaitable[None]]
    """Runs the row to one of its ends and stores it. Canceled when the row is canceled or the worker stops."""
    fail: Callable[[Runtime, Claim[R], str], Awaitable[None]]
    """Stores the end of a row whose run raised."""
    claiming: Callable[[ReturningUpdate[Any]], Executable] = lambda statement: statement
    """Adds to the statement that claims rows what is to be done and read in the same round trip."""
    parameters: Callable[[Runtime], Mapping[str, object]] = lambda runtime: {}
    """Those of what `claiming` adds."""


AnyJob = Job[Any]
"""A job, whatever its table."""


async def wake(runtime: Runtime, queue: str, depth: int = 0) -> None:
    """Tell a worker of `queue` that a row is due."""
    await runtime.wake.wake(f"{queue}:nested" if depth else queue)


def cancel_topic(queue: str) -> str:
    """The signal that tells the workers of a queue to look whether their rows are still theirs."""
    return f"cancel:{queue}"


@cache
def _claiming(job: AnyJob, *, nested_only: bool) -> Executable:
    """Takes up to `most` due rows for a worker and gives them, with the status each had before as `was`."""
    table: Any = job.table
    due = or_(
        and_(table.status == constant("PENDING"), table.run_at <= func.now()),
        and_(table.status.in_(list(map(constant, TAKEN))), table.lease_until < func.now()),
    )
    # Rows with waiting ancestors come first and need no slot, or the ancestors would wait for ever.
    # What still runs here is not claimed twice: its lease is renewed when the database is back.
    picked = (
        select(table.id, table.status.label("was"))
        .where(due, ~table.held, table.depth > 0 if nested_only else true())
        .where(table.id != all_(bindparam("running", type_=ARRAY(Uuid))))
        .order_by(table.depth.desc(), table.background != bindparam("background_first", type_=Boolean), table.run_at)
        .limit(bindparam("most", type_=Integer))
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    lease = func.make_interval(0, 0, 0, 0, 0, 0, bindparam("lease_seconds", type_=Float))
    return job.claiming(
        update(table)
        .where(table.id == picked.c.id)
        .values(
            status="RUNNING",
            attempt=table.attempt + 1,
            lease_until=func.now() + lease,
            worker=bindparam("worker_name", type_=Text),
        )
        .returning(*table.__table__.columns, picked.c.was)
    )


class Worker(Generic[R]):
    """Runs the rows of one queue, `slots` at a time."""

    def __init__(self, runtime: Runtime, job: Job[R], slots: int) -> None:
        self.runtime = runtime
        self.job = job
        self.slots = slots
        self.running: dict[UUID, asyncio.Task[None]] = {}
        self._columns = frozenset(job.table.__table__.columns.keys())
        self._claim_any = _claiming(job, nested_only=False)
        self._claim_nested = _claiming(job, nested_only=True)
        self._claiming = asyncio.Lock()
        """Held until what was claimed is known to be running here."""
        self._nested: set[UUID] = set()
        self._looks = 0
        self._outside: set[UUID] = set()
        """Those that have left their slot for a while."""
        self._may_be_more = True
        """Whether rows may be due of which no wake-up tells any more."""
        self._has_all = False
        """Whether the last claim found fewer rows than there was room for."""
        self._unsure = False
        """Whether rows may have been claimed of which it does not know, because the answer was lost."""
        self._woken = asyncio.Event()
        self._hungry = asyncio.Event()
        """Set while it has room and nothing to fill it with: otherwise the end of a row is what makes it look."""

    def load(self) -> Load:
        """What its signs of life say."""
        stats = self.runtime.sandbox.stats() if self.runtime.sandbox is not None else None
        pool = PoolStats(idle=stats.idle, in_use=stats.in_use, max_size=stats.max_size) if stats else None
        return Load(slots=self.slots, running=len(self.running), pool=pool)

    async def run(self) -> None:
        """Work until canceled; then give back what was running."""
        await self._release_own()
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(step) for step in (self._keep_leases(), self._listen(), self._listen_nested())]
            try:
                while True:
                    self._woken.clear()
                    while await self._claim_and_start():
                        pass
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL_SECONDS):
                            await self._woken.wait()
            finally:
                for helper in helpers:
                    helper.cancel()
                await self._give_back()

    async def _listen(self) -> None:
        while True:
            await self._hungry.wait()
            if await self.runtime.wake.wait([self.job.queue], POLL_SECONDS) is None:
                continue
            if self._free():
                self._woken.set()
            else:  # another worker may have a slot
                await self.runtime.wake.wake(self.job.queue)

    async def _listen_nested(self) -> None:
        while True:
            if await self.runtime.wake.wait([f"{self.job.queue}:nested"], POLL_SECONDS) is not None:
                self._woken.set()

    def _free(self) -> int:
        return max(0, self.slots - (len(self.running) - len(self._nested | self._outside)))

    def _slot_changed(self) -> None:
        self._note_free()
        self._woken.set()

    def _note_free(self) -> None:
        if self._has_all and self._free():
            self._hungry.set()
        else:
            self._hungry.clear()

    async def _claim_and_start(self) -> bool:
        """Start what is due; whether there may be more that this worker has room for."""
        if self._unsure:
            self._unsure = not await self._release_own()
        free = self._free()
        most = free or MAX_NESTED - len(self._nested)
        self._may_be_more = self._may_be_more or most <= 0
        if most <= 0:
            return False
        try:
            async with self._claiming:
                claims = await self._claim(most, has_slots=free > 0)  # as counted, though one may get free meanwhile
                self._start(claims)
        except SQLAlchemyError as error:
            log.warning("cannot claim work now", queue=self.job.queue, error=str(error).partition("\n")[0])
            self._unsure = self._unsure or is_lost(error)
            await asyncio.sleep(POLL_SECONDS / 2)
            return False
        if free:  # nothing to claim: the wake-up may have been for a row that has not quite ended here
            self._may_be_more = len(claims) == most or not claims
            self._has_all = len(claims) < most
        self._note_free()
        return len(claims) == most and self._free() > 0  # nested rows came first, so without slots none is left

    def _start(self, claims: Sequence[Claim[R]]) -> None:
        for claim in claims:
            row_id: UUID = claim.row.id  # type: ignore[attr-defined]  # every Leased table has an id
            if claim.row.depth:  # type: ignore[attr-defined]  # from Leased
                self._nested.add(row_id)
            self.running[row_id] = asyncio.create_task(self._run_one(row_id, claim))

    async def _claim(self, most: int, *, has_slots: bool) -> list[Claim[R]]:
        self._looks += has_slots  # others look for what is nested only
        parameters = {
            "most": most,
            "background_first": self._looks % BACKGROUND_SHARE == 0,
            "running": list(self.running),
            "lease_seconds": self.runtime.settings.job_lease_seconds,
            "worker_name": self.runtime.worker_name,
            **self.job.parameters(self.runtime),
        }
        statement = self._claim_any if has_slots else self._claim_nested
        return [self._claimed(row._asdict()) for row in await self.runtime.database.direct(statement, parameters)]

    def _claimed(self, values: dict[str, Any]) -> Claim[R]:
        row = self.job.table.loaded({name: values.pop(name) for name in self._columns})
        slot = Slot(self._outside, row.id, self._slot_changed)  # type: ignore[attr-defined]  # as in _start
        return Claim(row, interrupted=values.pop("was") in TAKEN, slot=slot, found=values)

    async def _run_one(self, row_id: UUID, claim: Claim[R]) -> None:
        try:
            await self.job.run(self.runtime, claim)
        except asyncio.CancelledError:
            raise
        except InterruptedWorkError as error:
            log.warning("work interrupted, will be resumed", queue=self.job.queue, id=str(row_id), error=str(error))
            await self._expire_lease(row_id)
        except Exception as error:  # noqa: BLE001 - the edge of a job: whatever it is, the row must reach its end
            await self._failed(row_id, claim, error)
        finally:
            self.running.pop(row_id, None)
            self._nested.discard(row_id)
            self._note_free()
            if self._may_be_more:
                self._woken.set()

    async def _failed(self, row_id: UUID, claim: Claim[R], error: Exception) -> None:
        if is_passing(error):
            log.warning("work cannot go on, will be resumed", queue=self.job.queue, id=str(row_id), error=str(error))
            await self._expire_lease(row_id)
            return
        log.error("work failed unexpectedly", queue=self.job.queue, id=str(row_id), exc_info=error)
        with suppress(SQLAlchemyError):
            await self.job.fail(self.runtime, claim, f"{type(error).__name__}: {error}")

    async def _expire_lease(self, row_id: UUID) -> None:
        """Let any worker take the row at once; if the database stays away, the lease runs out by itself."""
        table: Any = self.job.table
        self._may_be_more = True
        for _ in range(int(self.runtime.settings.job_lease_seconds / POLL_SECONDS)):
            try:
                await self.runtime.database.rows(
                    update(table)
                    .where(table.id == row_id, table.status.in_(TAKEN), table.worker == self.runtime.worker_name)
                    .values(lease_until=func.now())
                )
            except SQLAlchemyError:
                await asyncio.sleep(POLL_SECONDS)
            else:
                return

    async def _release_own(self) -> bool:
        """Let any worker take at once what is held in our name, which is ours alone, and does not run; if it could.

        It was held by an earlier process of this name, or by a claim whose answer was lost.
        """
        table: Any = self.job.table
        statement = (
            update(table)
            .where(table.status.in_(TAKEN), ~table.held, table.worker == self.runtime.worker_name)
            .where(table.id.not_in(list(self.running)))
            .values(lease_until=func.now())
        )
        try:
            await self.runtime.database.rows(statement)
        except SQLAlchemyError:
            return False
        return True

    async def _keep_leases(self) -> None:
        """Extend the leases in time, and look at once when something of this queue was canceled."""
        table: Any = self.job.table
        lease = self.runtime.settings.job_lease_seconds
        async with self.runtime.signals.listen(cancel_topic(self.job.queue)) as canceled:
            while True:
                await canceled.wait(lease / 3)
                async with self._claiming:  # what is being claimed may have been canceled as well
                    asked = set(self.running)
                statement = (
                    update(table)
                    .where(table.id.in_(asked), table.status.in_(TAKEN), table.worker == self.runtime.worker_name)
                    .values(lease_until=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, lease))
                    .returning(table.id)
                )
                if not asked:
                    continue
                with suppress(SQLAlchemyError):
                    kept = {row.id for row in await self.runtime.database.rows(statement)}
                    if kept != asked:
                        self._cancel(asked - kept - await self._let_go(asked - kept))

    async def _let_go(self, row_ids: set[UUID]) -> set[UUID]:
        """Those whose own run has brought them to an end or a wait: it is still telling those who wait for that."""
        table: Any = self.job.table
        mine = (table.worker == self.runtime.worker_name, table.status != CANCELED)
        found = await self.runtime.database.rows(select(table.id).where(table.id.in_(row_ids), *mine))
        return {row.id for row in found}

    def _cancel(self, row_ids: set[UUID]) -> None:
        """Stop what is no longer ours: canceled, deleted, or taken over after a long silence."""
        for row_id in row_ids:
            task = self.running.get(row_id)
            if task:
                task.cancel()

    async def _give_back(self) -> None:
        tasks: Sequence[asyncio.Task[None]] = list(self.running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._release_own()

"""Executions that failed for good while nobody waited for them: finding them, trying them again, letting them go."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, null, select, update
from sqlalchemy.orm import defer

from sinas_server.functions.concurrency import admit
from sinas_server.functions.tables import LARGE, QUEUE, ExecutionRow, Status
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, NotFoundError
from sinas_server.kernel.job import wake
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

DEAD = ExecutionRow.dead_at.is_not(None)
CLEARED = ("dead_at", "completed_at", "started_at", "duration_ms", "lease_until", "called_back_at")
WHOLE = {"synchronize_session": False}


async def list_dead(db: Db, skip: int, limit: int) -> Sequence[ExecutionRow]:
    """Dead letters, the newest first."""
    query = (
        select(ExecutionRow)
        .options(*map(defer, LARGE))
        .where(DEAD)
        .order_by(ExecutionRow.dead_at.desc(), ExecutionRow.id)
    )
    return (await db.scalars(query.offset(skip).limit(limit))).all()


async def count_dead(db: Db) -> int:
    """How many there are."""
    return (await db.execute(select(func.count()).select_from(ExecutionRow).where(DEAD))).scalar_one()


async def retry_dead(db: Db, runtime: Runtime, caller: Caller, execution_id: UUID) -> None:
    """Queue a dead letter again, under its id, with as many retries as a new execution has.

    Attempts go on counting, so that a worker that was only believed dead cannot finish a later one.
    Raises `NotFoundError`, and `ConflictError` for what is no dead letter.
    """
    fresh = {"failures": ExecutionRow.attempt, "max_retries": ExecutionRow.attempt + runtime.settings.queue_max_retries}
    cleared = dict.fromkeys(CLEARED, null())
    retried = await db.execute(
        update(ExecutionRow)
        .where(ExecutionRow.id == execution_id, DEAD)
        .values(
            status=Status.PENDING, run_at=func.now(), held=ExecutionRow.max_concurrency.is_not(None), **fresh, **cleared
        )
        .returning(ExecutionRow.namespace, ExecutionRow.name, ExecutionRow.function_id, ExecutionRow.held),
        execution_options=WHOLE,
    )
    row = retried.first()
    if row is None:
        if await db.get(ExecutionRow, execution_id) is None:
            raise NotFoundError("no such job")
        raise ConflictError("the job is no dead letter")
    await audit(db, caller, "retry", ("execution", str(execution_id)), {"function": f"{row.namespace}/{row.name}"})
    held = row.function_id if row.held else None
    db.after_commit(lambda: wake(runtime, QUEUE) if held is None else admit(runtime, held))


async def flush_dead(db: Db, caller: Caller) -> int:
    """Let all dead letters go: they stay in the history as failed. How many there were."""
    flushed = await db.execute(
        update(ExecutionRow).where(DEAD).values(dead_at=null()).returning(ExecutionRow.id), execution_options=WHOLE
    )
    count = len(flushed.all())
    await audit(db, caller, "flush", ("dead_letters", "executions"), {"count": count})
    return count

"""What a change sends out after its transaction: audit entries, tasks for the scheduler, and platform signals."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog
from pydantic import JsonValue
from sqlalchemy import func, insert, update

from sinas_server.kernel.access import Caller
from sinas_server.kernel.job import Claim, Job, wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import AnyResource
from sinas_server.kernel.tables import AuditRow, TaskRow
from sinas_server.kernel.unit import Db

log = structlog.get_logger()
TASK_QUEUE = "tasks"
MAX_ATTEMPTS = 8


class TryLaterError(Exception):
    """A task could not be done now, for a reason that lies outside; the message says which."""


async def audit(
    db: Db, caller: Caller | None, action: str, target: tuple[str, str], detail: Mapping[str, JsonValue] | None = None
) -> None:
    """Record who did `action` to `target` (kind, name) in the caller's own transaction."""
    values: dict[str, Any] = {"action": action, "target_kind": target[0], "target": target[1]}
    if caller is not None:
        values |= {"actor_id": caller.id, "actor": caller.email, "via": caller.via}
    await db.execute(insert(AuditRow).values(**values, detail=dict(detail) if detail else None))


async def audit_change(db: Db, old: AnyResource | None, new: AnyResource | None) -> None:
    """A kind's `on_change` for what holds secrets or opens doors: records who changed it, not to what."""
    resource = new or old
    if resource is None:
        return
    action = "create" if old is None else "delete" if new is None else "update"
    await audit(db, db.actor, action, (resource.kind, resource.ref), {"version": resource.version})


async def enqueue(db: Db, runtime: Runtime, task: str, payload: Mapping[str, JsonValue]) -> UUID:
    """Have the scheduler process run the task named `task` (see the catalog's TASKS) after this transaction."""
    row = await db.execute(insert(TaskRow).values(name=task, payload=dict(payload)).returning(TaskRow.id))
    db.after_commit(lambda: wake(runtime, TASK_QUEUE))
    return row.scalar_one()


async def _run(runtime: Runtime, claim: Claim[TaskRow]) -> None:
    row = claim.row
    try:
        await runtime.tasks[row.name](runtime, row.payload)
    except TryLaterError as error:
        log.warning("task could not be done", task=row.name, attempt=row.attempt, reason=str(error))
        await _fail(runtime, claim, str(error))
        return
    await runtime.database.rows(
        update(TaskRow)
        .where(TaskRow.id == row.id, TaskRow.attempt == row.attempt, TaskRow.status == "RUNNING")
        .values(status="COMPLETED", finished_at=func.now())
    )


async def _fail(runtime: Runtime, claim: Claim[TaskRow], error: str) -> None:
    """Try again later, each time four times as late, over three hours; after that the row stays as FAILED."""
    row = claim.row
    last = row.attempt >= MAX_ATTEMPTS
    delay = func.make_interval(0, 0, 0, 0, 0, 0, 2 * 4 ** (row.attempt - 1))
    await runtime.database.rows(
        update(TaskRow)
        .where(TaskRow.id == row.id, TaskRow.attempt == row.attempt, TaskRow.status == "RUNNING")
        .values(status="FAILED" if last else "PENDING", error=error, run_at=func.now() + delay)
    )


TASK_JOB = Job(queue=TASK_QUEUE, table=TaskRow, run=_run, fail=_fail)

"""Batches: many executions asked for with one request. Whatever other slices put into batches is read here as well."""

from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, Field, JsonValue
from sqlalchemy import ColumnElement, Select, Subquery, func, insert, select, union_all, update

from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.filters import member_of
from sinas_server.functions.tables import ENDED, ExecutionRow, Status
from sinas_server.identity.guard import require_on
from sinas_server.kernel.access import Caller
from sinas_server.kernel.delivery import send
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import BatchMembers, Runtime
from sinas_server.kernel.tables import BatchRow
from sinas_server.kernel.unit import Db

MAX_BATCH = 1000
EVERY_SECONDS = 2.0
MISSING: dict[int | str, dict[str, object]] = {404: {"description": "No such batch, or it is not yours."}}
BatchId = Annotated[UUID, Path(description="The batch's id.")]


class BatchResponse(BaseModel):
    """How far a batch is."""

    batch_id: UUID = Field(description="Its id.")
    status: str = Field(
        description="`queued`, `running`; or, when all have ended, `completed`, `partial` (some did), `failed` or "
        "`cancelled` (all)."
    )
    total: int = Field(description="How many jobs it has.")
    queued: int = Field(description="How many wait for a worker.")
    running: int = Field(description="How many run, or wait for input.")
    completed: int = Field(description="How many completed.")
    failed: int = Field(description="How many failed.")
    cancelled: int = Field(description="How many were cancelled.")
    created_at: str = Field(description="When it was asked for.")
    finished_at: str | None = Field(description="When the last of them had ended.")


class BatchMember(BaseModel):
    """One job of a batch."""

    execution_id: UUID = Field(description="Its id.")
    index: int = Field(description="Its place among the inputs, counted from 0.")
    status: Status = Field(description="Where it stands.")
    error: str | None = Field(description="Why it failed.")
    chat_id: UUID | None = Field(description="Its chat, if it is a message to an agent.")
    trigger_id: str | None = Field(description="What it is called: the batch's prefix and its place.")


class BatchMembersResponse(BaseModel):
    """Some jobs of a batch."""

    executions: list[BatchMember] = Field(description="In the order of the inputs.")
    total: int = Field(description="How many there are, of the status asked for.")
    limit: int = Field(description="As asked.")
    offset: int = Field(description="As asked.")


class MemberPage(BaseModel):
    """Which jobs of a batch are shown."""

    status: str | None = Field(None, description="Only those in this state, in either case.")
    limit: int = Field(100, ge=1, le=MAX_BATCH, description="The most to return.")
    offset: int = Field(0, ge=0, le=MAX_INT, description="How many to leave out.")

    def terms(self, members: Subquery) -> list[ColumnElement[bool]]:
        """The filter as conditions. Raises `InvalidError` for an unknown state."""
        status = member_of(Status, self.status, "status")
        return [] if status is None else [members.c.status == status]


async def _cancel(db: Db, runtime: Runtime, batch_id: UUID) -> int:
    return len(await cancel_executions(db, runtime, ExecutionRow.batch_id == batch_id))


EXECUTION_MEMBERS = BatchMembers(
    rows=select(
        ExecutionRow.batch_id,
        ExecutionRow.batch_index,
        ExecutionRow.id,
        ExecutionRow.status,
        ExecutionRow.error,
        ExecutionRow.chat_id,
        ExecutionRow.trigger_id,
    ).where(ExecutionRow.batch_id.is_not(None)),
    cancel=_cancel,
)
"""What the catalog registers for executions."""


async def create_batch(db: Db, caller: Caller, resource: str, target: str, total: int, callback: str | None) -> UUID:
    """A batch to insert jobs for, in the same transaction; `resource` says whose permissions count."""
    batch_id = uuid4()
    values = {"user_id": caller.id, "resource": resource, "target": target, "total": total, "callback_url": callback}
    await db.execute(insert(BatchRow).values(id=batch_id, **values))
    return batch_id


def members_of(runtime: Runtime) -> Subquery:
    """All members of all batches."""
    return union_all(*(members.rows for members in runtime.batch_members)).subquery("members")


async def standing(db: Db, runtime: Runtime, batch: BatchRow) -> dict[str, JsonValue]:
    """A batch as `BatchResponse` has it."""
    members = members_of(runtime)
    counted: Select[str, int] = (
        select(members.c.status, func.count()).where(members.c.batch_id == batch.id).group_by(members.c.status)
    )
    counts = dict.fromkeys(Status, 0)
    for status, count in await db.execute(counted):
        counts[Status(status)] = count
    return {
        "batch_id": str(batch.id),
        "status": _status(counts),
        "total": batch.total,
        "queued": counts[Status.PENDING],
        "running": counts[Status.RUNNING] + counts[Status.AWAITING_INPUT],
        "completed": counts[Status.COMPLETED],
        "failed": counts[Status.FAILED],
        "cancelled": counts[Status.CANCELLED],
        "created_at": batch.created_at.isoformat(),
        "finished_at": batch.finished_at.isoformat() if batch.finished_at else None,
    }


def _status(counts: dict[Status, int]) -> str:
    total = sum(counts.values())
    if counts[Status.PENDING] == total:
        return "queued"
    if any(counts[status] for status in Status if status not in ENDED):
        return "running"
    if counts[Status.CANCELLED] == total:
        return "cancelled"
    if counts[Status.COMPLETED]:
        return "completed" if counts[Status.COMPLETED] == total else "partial"
    return "failed"


_OPEN = select(BatchRow.id).where(BatchRow.finished_at.is_(None)).limit(1)


async def _finish_batches(runtime: Runtime) -> None:
    """Note which batches have ended, and tell those who want to know."""
    if not await runtime.database.lookup(_OPEN, {}):
        return
    members = members_of(runtime)
    open_ones = select(members.c.id).where(members.c.batch_id == BatchRow.id, members.c.status.not_in([*ENDED]))
    async with runtime.database.unit() as db:
        finished = await db.scalars(
            update(BatchRow)
            .where(BatchRow.finished_at.is_(None), ~open_ones.exists())
            .values(finished_at=func.now())
            .returning(BatchRow),
            execution_options={"synchronize_session": False},
        )
        for batch in finished.all():
            if batch.callback_url is not None:
                data = await standing(db, runtime, batch)
                content: dict[str, JsonValue] = {
                    "type": f"batch.{data['status']}",
                    "timestamp": data["finished_at"],
                    "data": data,
                }
                await send(db, runtime, batch.callback_url, f"batch_{batch.id}", content)


BATCH_LOOP = Loop("notice the ends of batches", EVERY_SECONDS, _finish_batches)


async def _seen(db: Db, caller: Caller, batch_id: UUID, action: str) -> BatchRow:
    batch = await db.get(BatchRow, batch_id)
    if batch is None:
        raise NotFoundError("batch not found")
    require_on(caller, batch.resource, action, batch.user_id, "batch")
    return batch


def _batches_router() -> APIRouter:
    router = new_router("/batches", "batches")

    @router.get("/{batch_id}", response_model=BatchResponse, summary="See how far a batch is", responses=MISSING)
    async def get(batch_id: BatchId, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
        return JsonAnswer(await standing(db, runtime, await _seen(db, caller, batch_id, "read")))

    @router.get(
        "/{batch_id}/executions",
        response_model=BatchMembersResponse,
        summary="List the jobs of a batch, in the order of the inputs",
        responses=MISSING,
    )
    async def list_members(
        batch_id: BatchId,
        runtime: Run,
        db: CurrentDb,
        caller: CurrentCaller,
        page: Annotated[MemberPage, Query()],
    ) -> Response:
        await _seen(db, caller, batch_id, "read")
        members = members_of(runtime)
        mine = [members.c.batch_id == batch_id, *page.terms(members)]
        total = (await db.execute(select(func.count()).select_from(members).where(*mine))).scalar_one()
        query = select(members).where(*mine).order_by(members.c.batch_index).offset(page.offset).limit(page.limit)
        shown = [
            {
                "execution_id": row.id,
                "index": row.batch_index,
                "status": row.status,
                "error": row.error,
                "chat_id": row.chat_id,
                "trigger_id": row.trigger_id,
            }
            for row in await db.execute(query)
        ]
        return JsonAnswer({"executions": shown, "total": total, "limit": page.limit, "offset": page.offset})

    @router.post(
        "/{batch_id}/cancel",
        response_model=BatchResponse,
        summary="Cancel what has not ended of a batch",
        responses=MISSING,
    )
    async def cancel(batch_id: BatchId, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
        """A batch that has ended stays as it is."""
        batch = await _seen(db, caller, batch_id, "update")
        for members in runtime.batch_members:
            await members.cancel(db, runtime, batch.id)
        return JsonAnswer(await standing(db, runtime, batch))

    return router


batches_router = _batches_router()

"""Executions over HTTP: what ran, what runs, and stopping it; jobs are the same rows under another name."""

from enum import StrEnum
from functools import partial
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response
from sqlalchemy import ColumnElement, func, select, update

from sinas_server.functions.execute import QUEUE, topic
from sinas_server.functions.tables import ENDED, ExecutionRow, Status, Trigger
from sinas_server.functions.views import (
    JOB_STATES,
    ContinueExecutionRequest,
    ContinueExecutionResponse,
    ExecutionResponse,
    JobResponse,
    StepResponse,
    execution_view,
    job_view,
    step_view,
)
from sinas_server.identity.execution_grants import closing_grants
from sinas_server.identity.guard import require_on
from sinas_server.kernel.access import AccessResource, Caller, OwnedColumns
from sinas_server.kernel.errors import BadRequestError, ConflictError, InvalidError, NotFoundError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.job import cancel_topic
from sinas_server.kernel.routes import MAX_LIST
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

EXECUTIONS = "executions"
RESOURCES = (
    AccessResource(
        EXECUTIONS,
        "Runs of functions; `own` are those on the caller's behalf. `update` resumes and cancels.",
        ("read", "update"),
        users_may=("read:own", "update:own"),
    ),
)
"""What the permission reference says about this."""

MISSING: dict[int | str, dict[str, object]] = {404: {"description": "No such execution, or it is not yours."}}
E = TypeVar("E", bound=StrEnum)
Id = Annotated[UUID, Path(description="The execution's id.")]
JobId = Annotated[UUID, Path(description="The id of the execution, which is that of its job.")]


def _member(enum: type[E], text: str | None, parameter: str) -> E | None:
    """A word of a query parameter in either case. Raises `InvalidError` naming the words there are."""
    if text is None:
        return None
    try:
        return enum(text.upper())
    except ValueError as error:
        known = ", ".join(enum)
        raise InvalidError([(("query", parameter), f"must be one of {known}")]) from error


def _of_function(function_name: str) -> ColumnElement[bool]:
    """Rows of the function called `namespace/name`, or of any namespace's function called `name`."""
    namespace, slash, name = function_name.rpartition("/")
    named = ExecutionRow.name == name
    return named & (ExecutionRow.namespace == namespace) if slash else named


async def _seen(db: Db, caller: Caller, execution_id: UUID, action: str = "read") -> ExecutionRow:
    """One execution. Raises `NotFoundError` also for those of others, and `ForbiddenError`."""
    row = await db.get(ExecutionRow, execution_id)
    if row is None:
        raise NotFoundError("execution not found")
    require_on(caller, EXECUTIONS, action, row.user_id, "execution")
    return row


async def _only(
    function_name: Annotated[str | None, Query(description="`namespace/name`, or the name alone.")] = None,
    status: Annotated[str | None, Query(description="One of the states, in either case.")] = None,
    chat_id: Annotated[UUID | None, Query(description="Only those called in this chat.")] = None,
    trigger_type: Annotated[str | None, Query(description="One of the triggers, in either case.")] = None,
) -> list[ColumnElement[bool]]:
    state, trigger = _member(Status, status, "status"), _member(Trigger, trigger_type, "trigger_type")
    terms = (
        None if function_name is None else _of_function(function_name),
        None if state is None else ExecutionRow.status == state,
        None if chat_id is None else ExecutionRow.chat_id == chat_id,
        None if trigger is None else ExecutionRow.trigger_type == trigger,
    )
    return [term for term in terms if term is not None]


def _executions_router() -> APIRouter:
    router = new_router("/executions", EXECUTIONS)

    @router.get("", response_model=list[ExecutionResponse], summary="List executions, the newest first")
    async def list_executions(
        db: CurrentDb,
        caller: CurrentCaller,
        only: Annotated[list[ColumnElement[bool]], Depends(_only)],
        skip: Annotated[int, Query(ge=0, le=MAX_INT, description="How many to leave out.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIST, description="The most to return.")] = 100,
    ) -> Response:
        query = (
            select(ExecutionRow)
            .where(caller.visible(EXECUTIONS, "read", OwnedColumns((), ExecutionRow.user_id)), *only)
            .order_by(ExecutionRow.created_at.desc(), ExecutionRow.id)
            .offset(skip)
            .limit(limit)
        )
        return JsonAnswer([execution_view(row) for row in await db.scalars(query)])

    @router.get("/{execution_id}", response_model=ExecutionResponse, summary="Get an execution", responses=MISSING)
    async def get(execution_id: Id, db: CurrentDb, caller: CurrentCaller) -> Response:
        return JsonAnswer(execution_view(await _seen(db, caller, execution_id)))

    @router.get(
        "/{execution_id}/steps",
        response_model=list[StepResponse],
        summary="List the executions that this one asked for",
        responses=MISSING,
    )
    async def list_steps(execution_id: Id, db: CurrentDb, caller: CurrentCaller) -> Response:
        parent = await _seen(db, caller, execution_id)
        query = select(ExecutionRow).where(ExecutionRow.parent_id == parent.id).order_by(ExecutionRow.created_at)
        return JsonAnswer([step_view(row) for row in await db.scalars(query)])

    _add_control(router)
    return router


def _add_control(router: APIRouter) -> None:
    @router.post(
        "/{execution_id}/continue",
        response_model=ContinueExecutionResponse,
        summary="Give a paused execution its input",
        responses=MISSING | {400: {"description": "It does not wait for input."}},
    )
    async def resume(
        execution_id: Id, body: ContinueExecutionRequest, db: CurrentDb, caller: CurrentCaller
    ) -> Response:
        """Functions pause in the shared pool only, which this release does not have: so far this answers 400."""
        row = await _seen(db, caller, execution_id, "update")
        raise BadRequestError(f"the execution does not wait for input: it is {row.status}")

    @router.post(
        "/{execution_id}/cancel",
        response_model=ExecutionResponse,
        summary="Cancel an execution: what runs is killed",
        responses=MISSING | {409: {"description": "It has ended."}},
    )
    async def cancel(execution_id: Id, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
        row = await _seen(db, caller, execution_id, "update")
        canceled = await cancel_executions(db, runtime, ExecutionRow.id == execution_id)
        if not canceled and row.status != Status.CANCELLED:
            raise ConflictError("the execution has ended already")
        await db.refresh(row)
        return JsonAnswer(execution_view(row))


async def cancel_executions(db: Db, runtime: Runtime, which: ColumnElement[bool]) -> set[UUID]:
    """Cancel the executions selected and those they wait for, after this transaction: which of all these had not ended.

    What runs is killed, what is queued never starts, and the tokens of both are void.
    """
    chosen = select(ExecutionRow.id).where(which, ExecutionRow.status.not_in(ENDED))
    tree = chosen.cte("tree", recursive=True)
    tree = tree.union_all(select(ExecutionRow.id).where(ExecutionRow.parent_id == tree.c.id, ExecutionRow.depth > 0))
    statement = (
        update(ExecutionRow)
        .where(ExecutionRow.id.in_(select(tree.c.id)), ExecutionRow.status.not_in(ENDED))
        .values(status=Status.CANCELLED, error="Canceled", completed_at=func.now(), lease_until=None)
        .returning(ExecutionRow.id)
    )
    canceled = set((await db.scalars(statement, execution_options={"synchronize_session": False})).all())
    if canceled:
        await db.execute(closing_grants(select(ExecutionRow.id).where(ExecutionRow.id.in_(canceled))))
        db.after_commit(lambda: runtime.signals.signal(cancel_topic(QUEUE)))
    for found in canceled:
        db.after_commit(partial(runtime.signals.signal, topic(found)))
    return canceled


def _jobs_router() -> APIRouter:
    router = new_router("/jobs", "jobs")

    @router.get("/{job_id}", response_model=JobResponse, summary="Get the state of a job", responses=MISSING)
    async def get(job_id: JobId, db: CurrentDb, caller: CurrentCaller) -> Response:
        return JsonAnswer(job_view(await _seen(db, caller, job_id)))

    @router.get(
        "/{job_id}/result",
        summary="Get what the function of a job returned",
        responses=MISSING | {409: {"description": "It has not completed; `detail` says where it stands."}},
    )
    async def get_result(job_id: JobId, db: CurrentDb, caller: CurrentCaller) -> Response:
        row = await _seen(db, caller, job_id)
        if row.status != Status.COMPLETED:
            why = f": {row.error}" if row.error else ""
            raise ConflictError(f"the job has no result: it is {JOB_STATES[row.status]}{why}")
        return JsonAnswer(row.output_data)

    return router


RUNTIME_ROUTERS = (_executions_router(), _jobs_router())
"""At the root."""

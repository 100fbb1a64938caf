"""Executions over HTTP: what ran, what runs, and stopping it; jobs are the same rows under another name."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy import select

from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.filters import ExecutionPage
from sinas_server.functions.tables import ExecutionRow, Status
from sinas_server.functions.trusted import give_input
from sinas_server.functions.views import (
    JOB_STATES,
    ContinueExecutionRequest,
    ContinueExecutionResponse,
    ExecutionResponse,
    JobResponse,
    StepResponse,
    continue_view,
    execution_view,
    job_view,
    step_view,
)
from sinas_server.functions.waiting import wait_while_connected
from sinas_server.identity.guard import require_on
from sinas_server.kernel.access import AccessResource, Caller, OwnedColumns
from sinas_server.kernel.errors import ConflictError, ForbiddenError, NotFoundError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.unit import Db

EXECUTIONS = "executions"
PENDING_INPUTS = "pending_inputs"
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
Id = Annotated[UUID, Path(description="The execution's id.")]
JobId = Annotated[UUID, Path(description="The id of the execution, which is that of its job.")]


async def seen_execution(db: Db, caller: Caller, execution_id: UUID, action: str = "read") -> ExecutionRow:
    """One execution. Raises `NotFoundError` also for those of others, and `ForbiddenError`."""
    row = await db.get(ExecutionRow, execution_id)
    if row is None:
        raise NotFoundError("execution not found")
    require_on(caller, EXECUTIONS, action, row.user_id, "execution")
    return row


def _executions_router() -> APIRouter:
    router = new_router("/executions", EXECUTIONS)

    @router.get("", response_model=list[ExecutionResponse], summary="List executions, the newest first")
    async def list_executions(
        db: CurrentDb,
        caller: CurrentCaller,
        only: Annotated[ExecutionPage, Query()],
    ) -> Response:
        query = (
            select(ExecutionRow)
            .where(caller.visible(EXECUTIONS, "read", OwnedColumns((), ExecutionRow.user_id)), *only.terms())
            .order_by(ExecutionRow.created_at.desc(), ExecutionRow.id)
            .offset(only.skip)
            .limit(only.limit)
        )
        return JsonAnswer([execution_view(row) for row in await db.scalars(query)])

    @router.get("/{execution_id}", response_model=ExecutionResponse, summary="Get an execution", responses=MISSING)
    async def get(execution_id: Id, db: CurrentDb, caller: CurrentCaller) -> Response:
        return JsonAnswer(execution_view(await seen_execution(db, caller, execution_id)))

    @router.get(
        "/{execution_id}/steps",
        response_model=list[StepResponse],
        summary="List the executions that this one asked for",
        responses=MISSING,
    )
    async def list_steps(execution_id: Id, db: CurrentDb, caller: CurrentCaller) -> Response:
        parent = await seen_execution(db, caller, execution_id)
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
        execution_id: Id, body: ContinueExecutionRequest, runtime: Run, caller: CurrentCaller, request: Request
    ) -> Response:
        """Answers when it pauses again or ends. `input` may be a text, or an object that holds one."""
        if PENDING_INPUTS in caller.barred:
            raise ForbiddenError("Not authorized: code may not answer in place of a person")
        async with runtime.database.unit() as db:
            await give_input(db, runtime, await seen_execution(db, caller, execution_id, "update"), body.text)
        now = await wait_while_connected(runtime, execution_id, request)
        return JsonAnswer(continue_view(now))

    @router.post(
        "/{execution_id}/cancel",
        response_model=ExecutionResponse,
        summary="Cancel an execution: what runs is killed",
        responses=MISSING | {409: {"description": "It has ended."}},
    )
    async def cancel(execution_id: Id, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
        row = await seen_execution(db, caller, execution_id, "update")
        canceled = await cancel_executions(db, runtime, ExecutionRow.id == execution_id)
        await db.refresh(row)  # before it is judged: another one may have cancelled it just now
        if not canceled and row.status != Status.CANCELLED:
            raise ConflictError("the execution has ended already")
        return JsonAnswer(execution_view(row))


def _jobs_router() -> APIRouter:
    router = new_router("/jobs", "jobs")

    @router.get("/{job_id}", response_model=JobResponse, summary="Get the state of a job", responses=MISSING)
    async def get(job_id: JobId, db: CurrentDb, caller: CurrentCaller) -> Response:
        return JsonAnswer(job_view(await seen_execution(db, caller, job_id)))

    @router.get(
        "/{job_id}/result",
        summary="Get what the function of a job returned",
        responses=MISSING | {409: {"description": "It has not completed; `detail` says where it stands."}},
    )
    async def get_result(job_id: JobId, db: CurrentDb, caller: CurrentCaller) -> Response:
        row = await seen_execution(db, caller, job_id)
        if row.status != Status.COMPLETED:
            why = f": {row.error}" if row.error else ""
            raise ConflictError(f"the job has no result: it is {JOB_STATES[row.status]}{why}")
        return JsonAnswer(row.output_data)

    return router


RUNTIME_ROUTERS = (_executions_router(), _jobs_router())
"""At the root."""

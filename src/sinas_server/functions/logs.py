"""The output of an execution over HTTP: as it is now, and as it is printed."""

from typing import Annotated
from uuid import UUID

from fastapi import Header, Path, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from sinas_server.backends.stream import START, Position
from sinas_server.functions.executions import MISSING, seen_execution
from sinas_server.functions.live_log import collect, follow
from sinas_server.functions.tables import ENDED, Status
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router

logs_router = new_router("/executions", "executions")
Id = Annotated[UUID, Path(description="The execution's id.")]
SSE = "text/event-stream"


class LogsResponse(BaseModel):
    """What an execution has printed."""

    execution_id: UUID = Field(description="The execution.")
    status: Status = Field(description="Where it stands.")
    attempt: int = Field(description="The attempt that printed it, counted from 1.")
    stdout: str = Field(description="What it printed.")
    stderr: str = Field(description="What it printed to standard error, and warnings of the platform.")
    complete: bool = Field(description="Whether this is all: it has ended.")


@logs_router.get(
    "/{execution_id}/logs",
    response_model=LogsResponse,
    summary="Get what an execution has printed so far",
    responses=MISSING,
)
async def get_logs(execution_id: Id, runtime: Run, caller: CurrentCaller) -> Response:
    """At most 1 MiB of each stream is kept."""
    async with runtime.database.unit() as db:
        row = await seen_execution(db, caller, execution_id)
    return JsonAnswer(
        {
            "execution_id": row.id,
            "status": row.status,
            "attempt": row.attempt,
            **await collect(runtime, row),
            "complete": row.status in ENDED,
        }
    )


@logs_router.get(
    "/{execution_id}/logs/stream",
    response_class=StreamingResponse,
    summary="Follow what an execution prints",
    responses=MISSING | {200: {"content": {SSE: {"schema": {"type": "string"}}}, "description": "Server-sent events."}},
)
async def stream_logs(
    execution_id: Id,
    runtime: Run,
    caller: CurrentCaller,
    last_event_id: Annotated[str | None, Header(description="Go on after this event.")] = None,
) -> StreamingResponse:
    """From the start of the attempt that runs, until the execution ends, as server-sent events.

    `log`: `{stream, output, attempt}`, some of what was printed, in order. `restart`: `{attempt}`, another attempt
    begins anew. `done`: `{status, error}`, the last event.
    """
    try:
        after = Position.parse(last_event_id) if last_event_id else START
    except ValueError as error:
        raise InvalidError([(("header", "Last-Event-ID"), "must be the id of an event of this stream")]) from error
    async with runtime.database.unit() as db:
        await seen_execution(db, caller, execution_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(follow(runtime, execution_id, after), media_type=SSE, headers=headers)

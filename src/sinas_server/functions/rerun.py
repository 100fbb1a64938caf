"""Running again what has run before: the same input for the function as it is now."""

from typing import Annotated
from uuid import UUID

from fastapi import Path, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from sinas_server.functions import execute
from sinas_server.functions.execute import Order
from sinas_server.functions.executions import MISSING, seen_execution
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.tables import Trigger
from sinas_server.kernel import store
from sinas_server.kernel.errors import BadRequestError, NotFoundError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.tables import ResourceRow

rerun_router = new_router("/executions", "executions")


class RerunResponse(BaseModel):
    """The new execution."""

    execution_id: UUID = Field(description="Its id.")
    status: str = Field(description="Always `queued`.")
    rerun_of: UUID = Field(description="The execution that it repeats.")


@rerun_router.post(
    "/{execution_id}/rerun",
    status_code=202,
    response_model=RerunResponse,
    summary="Execute again with the same input, as a new execution",
    responses=MISSING | {400: {"description": "It ran code that is no stored function."}},
)
async def rerun(
    execution_id: Annotated[UUID, Path(description="The execution's id.")],
    runtime: Run,
    db: CurrentDb,
    caller: CurrentCaller,
) -> Response:
    """It runs for you, with your rights and the function's present code; 422 if that no longer takes the input."""
    row = await seen_execution(db, caller, execution_id)
    if row.function_id is None:
        raise BadRequestError("it ran code that is no stored function, and cannot be run again")
    found = await db.scalar(
        select(ResourceRow).where(ResourceRow.id == row.function_id, ResourceRow.deleted_at.is_(None))
    )
    if found is None:
        raise NotFoundError(f"function '{row.namespace}/{row.name}' was deleted")
    function = await store.use(db, caller, FUNCTION, found.namespace, found.name, "execute")
    order = Order(
        trigger=Trigger.MANUAL,
        input=row.input_data,
        waits=False,
        retries=runtime.settings.queue_max_retries,
        trigger_id=row.trigger_id,
        rerun_of=row.id,
        location=("input",),
    )
    await execute.start(db, runtime, caller, function, order)
    return JsonAnswer({"execution_id": order.id, "status": "queued", "rerun_of": row.id}, 202)

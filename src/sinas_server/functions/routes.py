"""Functions over HTTP: declaring, finding and executing them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from sinas_server.functions import execute
from sinas_server.functions.execute import Order, Standing
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.tables import Trigger
from sinas_server.functions.views import (
    FunctionExecuteAsyncRequest,
    FunctionExecuteAsyncResponse,
    FunctionExecuteRequest,
    FunctionExecuteResponse,
    result_view,
)
from sinas_server.kernel import lookup
from sinas_server.kernel.errors import BadRequestError
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router
from sinas_server.kernel.routes import crud_router, runtime_list_router

PATIENCE_SECONDS = 15.0
"""How often a route that waits looks whether its client is still there."""


async def _where(
    namespace: Annotated[str, Path(description="The function's namespace.")],
    name: Annotated[str, Path(description="The function's name.")],
) -> tuple[str, str]:
    return namespace, name


async def _trigger(
    x_trigger: Annotated[str | None, Header(description="`MANUAL` for a run by hand in a console.")] = None,
) -> Trigger:
    return Trigger.MANUAL if (x_trigger or "").strip().upper() == Trigger.MANUAL else Trigger.API


Where = Annotated[tuple[str, str], Depends(_where)]
By = Annotated[Trigger, Depends(_trigger)]


async def _execute(
    at: Where, body: FunctionExecuteRequest, runtime: Run, caller: CurrentCaller, by: By, request: Request
) -> Response:
    """Answers 200 also when the function fails or times out: `status` says which."""
    order = Order(trigger=by, input=body.input, waits=True, timeout=body.timeout)
    function = await lookup.use(runtime.database, caller, FUNCTION, at, "execute")
    now = await execute.call(runtime, caller, function, order, PATIENCE_SECONDS)
    while not now.has_stopped and not await request.is_disconnected():  # it goes on without him who left
        now = Standing.of(await execute.wait(runtime, now.id, PATIENCE_SECONDS))
    return JsonAnswer(result_view(now))


async def _execute_async(
    at: Where, body: FunctionExecuteAsyncRequest, runtime: Run, caller: CurrentCaller, by: By
) -> Response:
    """If its code fails, it is tried again up to `QUEUE_MAX_RETRIES` times."""
    if body.callback_url is not None:
        raise BadRequestError("callback_url is not available in this release; ask for the execution instead")
    order = Order(
        trigger=by,
        input=body.input,
        waits=False,
        retries=runtime.settings.queue_max_retries,
        timeout=body.timeout,
        delay_seconds=body.delay_seconds or 0,
        trigger_id=body.trigger_id,
    )
    function = await lookup.use(runtime.database, caller, FUNCTION, at, "execute")
    execution_id = await execute.start_now(runtime, caller, function, order)
    return JsonAnswer({"execution_id": str(execution_id), "status": "queued"}, 202)


def _runtime_router() -> APIRouter:
    router = new_router("/functions/{namespace}/{name}/execute", "functions")
    router.add_api_route(
        "",
        _execute,
        methods=["POST"],
        name="execute",
        response_model=FunctionExecuteResponse,
        summary="Execute a function and wait for its end",
        responses={404: {"description": "No such function, or it is not active."}},
    )
    router.add_api_route(
        "/async",
        _execute_async,
        methods=["POST"],
        name="execute_async",
        status_code=202,
        response_model=FunctionExecuteAsyncResponse,
        summary="Execute a function without waiting for its end",
        responses={404: {"description": "No such function, or it is not active."}},
    )
    return router


MANAGEMENT_ROUTERS = (crud_router(FUNCTION),)
"""Below `/api/v1`."""

RUNTIME_ROUTERS = (_runtime_router(), runtime_list_router(FUNCTION))
"""At the root."""

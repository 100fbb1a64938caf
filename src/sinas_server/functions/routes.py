"""Functions over HTTP: declaring, finding and executing them."""

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from sinas_server.functions import execute
from sinas_server.functions.batches import MAX_BATCH, create_batch
from sinas_server.functions.call import call
from sinas_server.functions.execute import Order
from sinas_server.functions.executions import EXECUTIONS
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.presets import PRESETS
from sinas_server.functions.tables import Trigger
from sinas_server.functions.views import (
    FunctionExecuteAsyncRequest,
    FunctionExecuteAsyncResponse,
    FunctionExecuteBatchRequest,
    FunctionExecuteBatchResponse,
    FunctionExecuteRequest,
    FunctionExecuteResponse,
    PresetResponse,
    result_view,
)
from sinas_server.functions.waiting import PATIENCE_SECONDS, wait_while_connected
from sinas_server.kernel import lookup
from sinas_server.kernel.delivery import check_receiver
from sinas_server.kernel.errors import BadRequestError
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router
from sinas_server.kernel.routes import crud_router, runtime_list_router


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
    now = await call(runtime, caller, at, order, PATIENCE_SECONDS)
    if not now.has_stopped:
        now = await wait_while_connected(runtime, now.id, request)
    return JsonAnswer(result_view(now))


async def _execute_async(
    at: Where, body: FunctionExecuteAsyncRequest, runtime: Run, caller: CurrentCaller, by: By
) -> Response:
    """If its code fails, it is tried again up to `QUEUE_MAX_RETRIES` times, and then is a dead letter.

    A `trigger_id` that you have used before for this function gives the execution of that time and starts none; with
    another input it is refused. To `callback_url` the end is posted, signed as Standard Webhooks says: an object with
    `type` (`execution.completed`, `execution.failed` or `execution.cancelled`), `timestamp`, and `data` with
    `execution_id`, `function`, `status`, `output_data` (null with `output_omitted` if over 64 KiB), `error`, `cause`,
    `trigger_id`, `batch_id`, `batch_index`, `attempt`, `started_at`, `completed_at` and `duration_ms`. It is posted
    again for some hours until the answer is a 2xx; `webhook-id` stays the same.
    """
    order = Order(
        trigger=by,
        input=body.input,
        waits=False,
        retries=runtime.settings.queue_max_retries,
        timeout=body.timeout,
        delay_seconds=body.delay_seconds or 0,
        trigger_id=body.trigger_id,
        idempotency_key=body.trigger_id or None,
        callback_url=check_receiver(runtime, body.callback_url, ("body", "callback_url")),
    )
    function = await lookup.use(runtime.database, caller, FUNCTION, at, "execute")
    execution_id = await execute.start_now(runtime, caller, function, order)
    return JsonAnswer({"execution_id": str(execution_id), "status": "queued"}, 202)


async def _execute_batch(
    at: Where, body: FunctionExecuteBatchRequest, runtime: Run, caller: CurrentCaller, by: By
) -> Response:
    """All or none are queued, each as by `/execute/async`; `trigger_id_prefix` is no idempotency key.

    To `batch_callback_url` is posted when all have ended: `type` is `batch.` and the batch's status, and `data` is what
    `GET /batches/{batch_id}` answers.
    """
    if len(body.inputs) > MAX_BATCH:
        raise BadRequestError(f"a batch has at most {MAX_BATCH} inputs, not {len(body.inputs)}")
    callback = check_receiver(runtime, body.callback_url, ("body", "callback_url"))
    batch_callback = check_receiver(runtime, body.batch_callback_url, ("body", "batch_callback_url"))
    function = await lookup.use(runtime.database, caller, FUNCTION, at, "execute")
    async with runtime.database.unit() as db:
        total = len(body.inputs)
        batch_id = await create_batch(db, caller, EXECUTIONS, function.ref, total, batch_callback)
        orders = [
            Order(
                trigger=by,
                input=given,
                waits=False,
                retries=runtime.settings.queue_max_retries,
                timeout=body.timeout,
                delay_seconds=body.delay_seconds or 0,
                trigger_id=f"{body.trigger_id_prefix}-{index}" if body.trigger_id_prefix else None,
                callback_url=callback,
                batch=(batch_id, index),
                location=("body", "inputs", index),
            )
            for index, given in enumerate(body.inputs)
        ]
        await execute.start_many(db, runtime, caller, function, orders)
    ids = [str(order.id) for order in orders]
    return JsonAnswer({"batch_id": str(batch_id), "execution_ids": ids, "total": total, "status": "queued"}, 202)


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
        responses={
            404: {"description": "No such function, or it is not active."},
            409: {"description": "The `trigger_id` was used before with another input."},
        },
    )
    router.add_api_route(
        "/batch",
        _execute_batch,
        methods=["POST"],
        name="execute_batch",
        status_code=202,
        response_model=FunctionExecuteBatchResponse,
        summary="Execute a function for many inputs, without waiting",
        responses={
            400: {"description": "More than 1000 inputs."},
            404: {"description": "No such function, or it is not active."},
        },
    )
    return router


def _presets_router() -> APIRouter:
    router = new_router("/functions/presets", "functions")

    @router.get("", response_model=list[PresetResponse], summary="List the schemas of functions the platform calls")
    async def list_presets(caller: CurrentCaller) -> Response:
        """For filters, hooks and change data capture: what such a function is given, and what it may return."""
        return JsonAnswer([dataclasses.asdict(preset) for preset in PRESETS.values()])

    return router


MANAGEMENT_ROUTERS = (_presets_router(), crud_router(FUNCTION))
"""Below `/api/v1`."""

RUNTIME_ROUTERS = (_runtime_router(), runtime_list_router(FUNCTION))
"""At the root."""

"""The one door to running a function: API, agents, webhooks, schedules and hooks start and await executions here."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

from pydantic import JsonValue
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db import is_lost
from sinas_server.functions.kind import FunctionSpec
from sinas_server.functions.tables import ExecutionRow, Trigger
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import BadRequestError, InvalidError, Location, NotFoundError, UnavailableError
from sinas_server.kernel.job import wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import CallIdentity
from sinas_server.kernel.unit import Db
from sinas_server.kit.schema import violations

QUEUE = "functions"
MAX_DEPTH = 8
"""How many executions may wait for each other in a chain."""
LOOK_SECONDS = 1.0
"""A lost signal delays an answer by at most this."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to run a function with, and why."""

    trigger: Trigger
    input: Mapping[str, JsonValue]
    waits: bool
    """Whether the one who asks waits for the end: nested, it then needs no free slot."""
    retries: int = 0
    """How often to try again when the code fails; decision 29 says for which triggers."""
    timeout: int | None = None
    """A shorter limit than the function's, in seconds."""
    delay_seconds: float = 0
    trigger_id: str | None = None
    call: CallIdentity | None = None
    """Of an agent's tool call, which creates at most one execution."""
    location: Location = ("body", "input")
    """Where the input stands in the request, for the errors of its schema."""


def topic(execution_id: UUID) -> str:
    """The signal that an execution has reached an end or a pause."""
    return f"execution:{execution_id}"


async def start(db: Db, runtime: Runtime, caller: Caller, function: Resource[FunctionSpec], order: Order) -> UUID:
    """Record an execution and wake a worker after this transaction; gives its id.

    Whether the caller may execute is asked before, where the function is read. Raises `InvalidError` for an input that
    breaks the schema, and `BadRequestError` for calls nested too deeply and functions that cannot run here.
    """
    _refuse_unrunnable(caller, function)
    _check_input(function.spec, order)
    execution_id, depth = uuid4(), caller.depth if order.waits else 0
    values = {"id": execution_id, "depth": depth, **_columns(runtime, caller, function, order)}
    statement = insert(ExecutionRow).values(**values).on_conflict_do_nothing().returning(ExecutionRow.id)
    if await db.scalar(statement) is None and order.call is not None:  # the same call was started before
        return (await db.execute(select(ExecutionRow.id).where(*_is_call(order.call)))).scalar_one()
    if not order.delay_seconds:
        db.after_commit(lambda: wake(runtime, QUEUE, depth))
    return execution_id


def _columns(runtime: Runtime, caller: Caller, function: Resource[FunctionSpec], order: Order) -> dict[str, object]:
    timeout, timeout_from = _limit(runtime, function.spec, order.timeout)
    columns: dict[str, object] = {
        "user_id": caller.id,
        "user_email": caller.email,
        "api_key_id": caller.api_key,
        "owner_ids": list(caller.owners),
        "function_id": function.id,
        "function_owner_id": function.owner_id,
        "namespace": function.namespace,
        "name": function.name,
        "version": function.version,
        "trigger_type": order.trigger,
        "trigger_id": order.trigger_id,
        "parent_id": caller.credential if caller.via == "function" else None,
        "input_data": dict(order.input),
        "timeout": timeout,
        "timeout_from": timeout_from,
        "max_retries": order.retries,
    }
    if order.delay_seconds:
        columns["run_at"] = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, order.delay_seconds)
    if order.call is not None:
        columns |= {
            "chat_id": order.call.chat_id,
            "tool_call_id": order.call.tool_call_id,
            "turn_id": order.call.turn_id,
            "step": order.call.step,
            "call_index": order.call.index,
        }
    return columns


def _refuse_unrunnable(caller: Caller, function: Resource[FunctionSpec]) -> None:
    if function.spec.shared_pool:
        raise BadRequestError(
            f"function '{function.ref}' asks for the shared pool, which this release does not have yet; "
            "set shared_pool to false to run it in the sandbox"
        )
    if caller.depth > MAX_DEPTH:
        raise BadRequestError(f"functions are calling each other more than {MAX_DEPTH} deep")


def _check_input(spec: FunctionSpec, order: Order) -> None:
    found = violations(spec.input_schema, dict(order.input))
    if found:
        raise InvalidError([((*order.location, *problem.path), problem.message) for problem in found], "json_schema")


def _limit(runtime: Runtime, spec: FunctionSpec, asked: int | None) -> tuple[float, str]:
    """The time limit in seconds, and whose it is; a request can only shorten it."""
    limit, source = (
        (float(spec.timeout), "function") if spec.timeout else (runtime.settings.function_timeout, "settings")
    )
    return (float(asked), "request") if asked is not None and asked < limit else (limit, source)


def _is_call(call: CallIdentity) -> Sequence[ColumnElement[bool]]:
    return (
        ExecutionRow.turn_id == call.turn_id,
        ExecutionRow.step == call.step,
        ExecutionRow.call_index == call.index,
    )


async def of_call(runtime: Runtime, call: CallIdentity) -> ExecutionRow | None:
    """The execution that a tool call has already started, if any."""
    found = await look(runtime, *_is_call(call))
    return found[0] if found else None


async def look(runtime: Runtime, *where: ColumnElement[bool]) -> list[ExecutionRow]:
    """Executions as they are now, read in one round trip; the rows belong to no session."""
    rows = await runtime.database.read(select(ExecutionRow).where(*where))
    return [ExecutionRow(**row._asdict()) for row in rows]


async def wait(runtime: Runtime, execution_id: UUID, timeout_seconds: float) -> ExecutionRow:
    """An execution as soon as it has ended or paused, or as it is after the timeout. Holds no connection meanwhile.

    Raises `NotFoundError`, and `UnavailableError` if the database was away for the whole time.
    """
    clock = asyncio.get_running_loop()
    deadline = clock.time() + timeout_seconds
    async with runtime.signals.listen(topic(execution_id)) as listener:
        while True:
            row = await _look_patiently(runtime, execution_id)
            left = deadline - clock.time()
            if row is not None and (row.has_stopped or left <= 0):
                return row
            if left <= 0:
                raise UnavailableError("the database is not available; the execution goes on when it is")
            await listener.wait(min(LOOK_SECONDS, left))


async def _look_patiently(runtime: Runtime, execution_id: UUID) -> ExecutionRow | None:
    """The execution, or None while the database is away."""
    try:
        found = await look(runtime, ExecutionRow.id == execution_id)
    except SQLAlchemyError as error:
        if is_lost(error):
            return None
        raise
    if not found:
        raise NotFoundError("execution not found")
    return found[0]

"""The one door to running a function: API, agents, webhooks, schedules and hooks start and await executions here."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from uuid import UUID, uuid4

import orjson
import structlog
from pydantic import JsonValue
from sqlalchemy import (
    Executable,
    Float,
    Integer,
    Row,
    Select,
    SQLColumnExpression,
    Text,
    Uuid,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db import is_lost
from sinas_server.functions.concurrency import admit
from sinas_server.functions.kind import FunctionSpec
from sinas_server.functions.presets import Shape, given_schema
from sinas_server.functions.tables import QUEUE, Cause, ExecutionRow, Status, Trigger
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import (
    BadRequestError,
    ConflictError,
    InvalidError,
    Location,
    NotFoundError,
    UnavailableError,
)
from sinas_server.kernel.job import wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import TAKEN
from sinas_server.kernel.tool import CallIdentity
from sinas_server.kernel.unit import Db
from sinas_server.kit.schema import violations

log = structlog.get_logger()
MAX_DEPTH = 8
"""How many executions may wait for each other in a chain."""
PATIENCE_SECONDS = 60.0
"""How long the one who waits for the end waits at a time."""
LOOK_SECONDS = 1.0
"""A lost signal delays an answer by at most this."""
MOST_WOKEN = 20
"""Wake-ups for many executions asked for at once: a worker that is woken takes as many as it has room for."""
MAX_NOTE = 1 << 16
"""Bytes of a result that travel with the signal that it is there."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to run a function with, and why."""

    trigger: Trigger
    input: Mapping[str, JsonValue]
    waits: bool
    """Whether the one who asks waits for the end: nested, it then needs no free slot."""
    retries: int | None = None
    """How often to try again when the code fails, before it is a dead letter (decision 29 says for which triggers);
    None: the first failure is final, and whoever asked is told."""
    timeout: int | None = None
    """A shorter limit than the function's, in seconds."""
    delay_seconds: float = 0
    trigger_id: str | None = None
    idempotency_key: str | None = None
    """With the key of an earlier order of the same user for the same function, that one's execution is meant."""
    callback_url: str | None = None
    """Who is told the end; checked before."""
    rerun_of: UUID | None = None
    batch: tuple[UUID, int] | None = None
    """The batch it belongs to, and its place there."""
    call: CallIdentity | None = None
    """Of an agent's tool call, which creates at most one execution."""
    shape: Shape | None = None
    """What the input looks like, where the trigger alone does not say."""
    location: Location = ("body", "input")
    """Where the input stands in the request, for the errors of its schema."""
    id: UUID = field(default_factory=uuid4)
    """Of the execution, unless its call has one already."""


def topic(execution_id: UUID) -> str:
    """The signal that an execution has reached an end or a pause."""
    return f"execution:{execution_id}"


async def start(db: Db, runtime: Runtime, caller: Caller, function: Resource[FunctionSpec], order: Order) -> UUID:
    """Record an execution and wake a worker after this transaction; gives its id.

    Whether the caller may execute is asked before, where the function is read. Raises `InvalidError` for an input that
    breaks the schema, `BadRequestError` for calls nested too deeply, and
    `ConflictError` for a key that was used before with another input.
    """
    values = checked(runtime, caller, function, order)
    connection = await db.connection()
    if (await connection.execute(_INSERT, values)).first() is None:
        return _meant(order, (await connection.execute(*_earlier(order, values))).one())
    db.after_commit(lambda: _tell(runtime, order, values))
    return order.id


async def start_many(
    db: Db, runtime: Runtime, caller: Caller, function: Resource[FunctionSpec], orders: Sequence[Order]
) -> None:
    """Like `start` for each of them, all or none; the error names every input that breaks the schema."""
    problems = [problem for order in orders for problem in _problems(function.spec, order)]
    if problems:
        raise InvalidError(problems, "json_schema")
    values = [checked(runtime, caller, function, order) for order in orders]
    await (await db.connection()).execute(_INSERT_MANY, values)
    is_limited = function.spec.max_concurrency is not None
    for told in values[: 1 if is_limited else MOST_WOKEN]:
        db.after_commit(partial(_tell, runtime, orders[0], told))


async def start_now(runtime: Runtime, caller: Caller, function: Resource[FunctionSpec], order: Order) -> UUID:
    """Like `start`, in one round trip that commits by itself."""
    return await store_now(runtime, caller, order, checked(runtime, caller, function, order))


async def store_now(runtime: Runtime, caller: Caller, order: Order, values: dict[str, object]) -> UUID:
    """Record what `parameters` made, and wake a worker; gives the id of the one there is for the same call or key."""
    if await insert_now(runtime, _INSERT, order, values):
        return order.id
    return _meant(order, (await runtime.database.lookup(*_earlier(order, values)))[0])


async def insert_now(runtime: Runtime, statement: Executable, order: Order, values: dict[str, object]) -> bool:
    """Record an execution in one round trip and wake a worker; whether the statement recorded any."""
    values["new_input_data"] = orjson.dumps(values["new_input_data"]).decode()
    if not await runtime.database.direct(statement, values):
        return False
    await _tell(runtime, order, values)
    return True


async def _tell(runtime: Runtime, order: Order, values: Mapping[str, object]) -> None:
    """Have a worker look, unless it is too early."""
    if order.delay_seconds:
        return
    if values["new_held"]:
        await admit(runtime, cast(UUID, values["new_function_id"]))
    else:
        await wake(runtime, QUEUE, cast(int, values["new_depth"]))


def _earlier(order: Order, values: Mapping[str, object]) -> tuple[Select[*tuple[object, ...]], dict[str, object]]:
    """How to find the execution that there is already for an order's call or key."""
    if order.call is not None:
        return _BY_CALL, _which(order.call)
    user, function = values["new_user_id"], values["new_function_id"]
    return _BY_KEY, {"of_user": user, "of_function": function, "of_key": order.idempotency_key}


def _meant(order: Order, earlier: Row[*tuple[object, ...]]) -> UUID:
    """The execution that there is already, if it is what the order asks for."""
    same = orjson.dumps(earlier.input_data, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        dict(order.input), option=orjson.OPT_SORT_KEYS
    )
    if order.call is None and not same:
        raise ConflictError(
            f"trigger_id '{order.idempotency_key}' was used before with another input, for execution {earlier.id}"
        )
    return cast(UUID, earlier.id)


@dataclass(frozen=True)
class Standing:
    """Where an execution stands: what the one who waits for it is told."""

    id: UUID
    status: Status
    cause: Cause | None = None
    error: str | None = None
    output_data: JsonValue = None
    prompt: str | None = None
    """What it asks for, while it waits for input."""

    @classmethod
    def of(cls, row: ExecutionRow) -> "Standing":
        """That of a row."""
        cause = Cause(row.cause) if row.cause else None
        return cls(row.id, Status(row.status), cause, row.error, row.output_data, row.prompt)

    @classmethod
    def noted(cls, execution_id: UUID, note: bytes) -> "Standing":
        """What `note` says."""
        told = orjson.loads(note)
        cause = Cause(told["cause"]) if told["cause"] else None
        return cls(execution_id, Status(told["status"]), cause, told["error"], told["output_data"], told["prompt"])

    def note(self) -> bytes:
        """For `noted`, to go with the signal that it ended; empty where that would be large."""
        told = {name: getattr(self, name) for name in ("status", "cause", "error", "output_data", "prompt")}
        note = orjson.dumps(told)
        return note if len(note) <= MAX_NOTE else b""

    @property
    def has_stopped(self) -> bool:
        """Whether waiting for more is no use: it has ended, or waits for input."""
        return self.status not in (Status.PENDING, Status.RUNNING)


_COLUMNS = (
    *("id", "depth", "user_id", "user_email", "api_key_id", "owner_ids", "function_id", "function_owner_id"),
    *("namespace", "name", "version", "trigger_type", "trigger_id", "parent_id", "chat_id", "tool_call_id"),
    *("turn_id", "step", "call_index", "input_data", "timeout", "timeout_from", "shared_pool", "max_retries"),
    *("idempotency_key", "callback_url", "rerun_of", "batch_id", "batch_index", "max_concurrency", "held"),
)
NEW: Mapping[str, SQLColumnExpression[object]] = {
    **{name: bindparam(f"new_{name}", type_=ExecutionRow.__table__.columns[name].type) for name in _COLUMNS},
    "run_at": func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("new_delay", type_=Float)),
}
"""The columns of a new execution, whose parameters `checked` gives."""
_INSERT_MANY = insert(ExecutionRow).values(NEW)
_INSERT = _INSERT_MANY.on_conflict_do_nothing().returning(ExecutionRow.id)
"""Gives nothing if the same tool call was started before, or one with the same key."""


OURS = (
    ExecutionRow.id == bindparam("our_id", type_=Uuid),
    ExecutionRow.attempt == bindparam("our_attempt", type_=Integer),
    ExecutionRow.status.in_([literal_column(f"'{status}'") for status in TAKEN]),
)
"""That a row is still a worker's own, whose parameters `ours` gives."""


def ours(row: ExecutionRow) -> dict[str, object]:
    """The parameters of `OURS`."""
    return {"our_id": row.id, "our_attempt": row.attempt}


def _depth(caller: Caller, order: Order) -> int:
    return caller.depth if order.waits else 0


def checked(runtime: Runtime, caller: Caller, function: Resource[FunctionSpec], order: Order) -> dict[str, object]:
    """The parameters of `NEW`.

    Raises `InvalidError` for an input that breaks the schema, and `BadRequestError` for calls nested too deeply.
    """
    problems = _problems(function.spec, order)
    if problems:
        raise InvalidError(problems, "json_schema")
    own = function.spec.timeout
    usual = (float(own), "function") if own else (runtime.settings.function_timeout, "settings")
    return {
        **parameters(caller, order, usual),
        "new_function_id": function.id,
        "new_function_owner_id": function.owner_id,
        "new_namespace": function.namespace,
        "new_name": function.name,
        "new_version": function.version,
        "new_max_concurrency": function.spec.max_concurrency,
        "new_held": function.spec.max_concurrency is not None,
        "new_shared_pool": function.spec.shared_pool,
    }


def parameters(caller: Caller, order: Order, usual: tuple[float, str]) -> dict[str, object]:
    """What an execution records whatever it runs; `usual` is its time limit in seconds, and whose that is.

    Raises `BadRequestError` for calls nested too deeply.
    """
    if caller.depth > MAX_DEPTH:
        raise BadRequestError(f"functions are calling each other more than {MAX_DEPTH} deep")
    timeout, timeout_from = usual
    if order.timeout is not None and order.timeout < timeout:  # a request can only shorten it
        timeout, timeout_from = float(order.timeout), "request"
    call = order.call
    return {
        "new_id": order.id,
        "new_depth": _depth(caller, order),
        "new_user_id": caller.id,
        "new_user_email": caller.email,
        "new_api_key_id": caller.api_key,
        "new_owner_ids": list(caller.owners),
        "new_trigger_type": order.trigger.value,
        "new_trigger_id": order.trigger_id,
        "new_parent_id": caller.credential if caller.via == "function" else None,
        "new_chat_id": call.chat_id if call else None,
        "new_tool_call_id": call.tool_call_id if call else None,
        "new_turn_id": call.turn_id if call else None,
        "new_step": call.step if call else None,
        "new_call_index": call.index if call else None,
        "new_input_data": dict(order.input),
        "new_timeout": timeout,
        "new_timeout_from": timeout_from,
        "new_shared_pool": False,
        "new_max_retries": order.retries,
        "new_idempotency_key": order.idempotency_key,
        "new_callback_url": order.callback_url,
        "new_rerun_of": order.rerun_of,
        "new_batch_id": order.batch[0] if order.batch else None,
        "new_batch_index": order.batch[1] if order.batch else None,
        "new_max_concurrency": None,
        "new_held": False,
        "new_delay": float(order.delay_seconds),
    }


def _problems(spec: FunctionSpec, order: Order) -> list[tuple[Location, str]]:
    """Where an order's input breaks the schema of its trigger or of the function, and why."""
    given = dict(order.input)
    found = violations(given_schema(order.trigger, order.shape), given) or violations(spec.input_schema, given)
    return [((*order.location, *problem.path), problem.message) for problem in found]


async def of_call(runtime: Runtime, call: CallIdentity) -> ExecutionRow | None:
    """The execution that a tool call has already started, if any."""
    rows = await runtime.database.lookup(_BY_CALL, _which(call))
    return ExecutionRow.loaded(rows[0]._asdict()) if rows else None


def _which(call: CallIdentity) -> dict[str, object]:
    return {"of_turn": call.turn_id, "of_step": call.step, "of_index": call.index}


_ROW = select(*ExecutionRow.__table__.columns)
_BY_ID = _ROW.where(ExecutionRow.id == bindparam("of_id", type_=Uuid))
_BY_CALL = _ROW.where(
    ExecutionRow.turn_id == bindparam("of_turn", type_=Uuid),
    ExecutionRow.step == bindparam("of_step", type_=Integer),
    ExecutionRow.call_index == bindparam("of_index", type_=Integer),
)
_BY_KEY = _ROW.where(
    ExecutionRow.user_id == bindparam("of_user", type_=Uuid),
    ExecutionRow.function_id == bindparam("of_function", type_=Uuid),
    ExecutionRow.idempotency_key == bindparam("of_key", type_=Text),
)


async def wait(runtime: Runtime, execution_id: UUID, timeout_seconds: float) -> ExecutionRow:
    """An execution as soon as it has ended or paused, or as it is after the timeout. Holds no connection meanwhile.

    Raises `NotFoundError`, and `UnavailableError` if the database was away for the whole time.
    """
    clock = asyncio.get_running_loop()
    deadline = clock.time() + timeout_seconds
    async with runtime.signals.listen(topic(execution_id)) as listener:
        while True:
            row = await _look(runtime, execution_id)
            left = deadline - clock.time()
            if row is not None and (row.has_stopped or left <= 0):
                return row
            if left <= 0:
                raise UnavailableError("the database is not available; the execution goes on when it is")
            await listener.wait(min(LOOK_SECONDS, left))


async def wait_for_end(runtime: Runtime, execution_id: UUID) -> ExecutionRow:
    """An execution once it has ended or paused, however long that and outages of the database take."""
    while True:
        try:
            row = await wait(runtime, execution_id, PATIENCE_SECONDS)
        except UnavailableError:
            log.warning("waiting for the database", execution=str(execution_id))
        else:
            if row.has_stopped:
                return row


async def _look(runtime: Runtime, execution_id: UUID) -> ExecutionRow | None:
    """The execution, or None while the database is away."""
    try:
        rows = await runtime.database.lookup(_BY_ID, {"of_id": execution_id})
    except SQLAlchemyError as error:
        if is_lost(error):
            return None
        raise
    if not rows:
        raise NotFoundError("execution not found")
    return ExecutionRow.loaded(rows[0]._asdict())

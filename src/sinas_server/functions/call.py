"""Calling a function and waiting for its end, in as few round trips as it takes."""

from collections.abc import Mapping

from pydantic import JsonValue
from sqlalchemy import exists, select
from sqlalchemy.dialects.postgresql import insert

from sinas_server.backends.stream import Listener
from sinas_server.functions.execute import (
    LOOK_SECONDS,
    NEW,
    Order,
    Standing,
    checked,
    insert_now,
    of_call,
    start_now,
    topic,
    wait,
    wait_for_end,
)
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.tables import ExecutionRow, Trigger
from sinas_server.kernel import lookup
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import NotFoundError, SinasError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.tool import CallIdentity

_SAME = exists().where(
    ResourceRow.id == NEW["function_id"],
    ResourceRow.version == NEW["version"],
    ResourceRow.owner_id.is_not_distinct_from(NEW["function_owner_id"]),
    ResourceRow.is_active,
    ResourceRow.deleted_at.is_(None),
)
_INSERT_IF_SAME = (
    insert(ExecutionRow)
    .from_select(list(NEW), select(*NEW.values()).where(_SAME))
    .on_conflict_do_nothing()
    .returning(ExecutionRow.id)
)
"""Gives nothing if the function is not any more what it was when its parameters were made, or its call was made."""


async def call(runtime: Runtime, caller: Caller, at: tuple[str, str], order: Order, timeout_seconds: float) -> Standing:
    """Start an execution of the function at (namespace, name) and `wait` for it.

    Raises what `lookup.use` and `execute.start` raise. Not for orders that may mean an earlier execution.
    """
    async with runtime.signals.listen(topic(order.id)) as listener:
        if not await _start_same(runtime, caller, at, order):
            function = await lookup.use(runtime.database, caller, FUNCTION, at, "execute")
            lookup.remember(runtime, function, size=len(function.spec.code))
            await start_now(runtime, caller, function, order)
        noted = await _noted(listener, order, timeout_seconds)
    return noted or Standing.of(await wait(runtime, order.id, timeout_seconds))


async def call_as_tool(
    runtime: Runtime, caller: Caller, at: tuple[str, str], given: Mapping[str, JsonValue], identity: CallIdentity
) -> Standing:
    """The same for an agent's call, until it has ended or paused; called again, it waits for the execution there is.

    Asks for no right of the caller: which functions an agent may call is asked where its tools are listed. Raises
    `NotFoundError`, `InvalidError` and `BadRequestError`.
    """
    order = Order(trigger=Trigger.AGENT, input=given, waits=True, call=identity, location=("arguments",))
    async with runtime.signals.listen(topic(order.id)) as listener:
        if not identity.waited and await _start_same(runtime, caller, at, order, lent=True):
            noted = await _noted(listener, order, LOOK_SECONDS)
            return noted or Standing.of(await wait_for_end(runtime, order.id))
    row = await of_call(runtime, identity)
    if row is not None:
        return Standing.of(await wait_for_end(runtime, row.id))
    function = await lookup.find(runtime.database, FUNCTION, *at)
    if function is None or not function.is_active:
        raise NotFoundError(f"{FUNCTION.called(*at)} does not exist any more")
    lookup.remember(runtime, function, size=len(function.spec.code))
    return Standing.of(await wait_for_end(runtime, await start_now(runtime, caller, function, order)))


async def _noted(listener: Listener, order: Order, timeout_seconds: float) -> Standing | None:
    """The end, if its signal comes soon and tells all: what has just begun has not ended, so nobody looks before."""
    if await listener.wait(min(LOOK_SECONDS, timeout_seconds)) and listener.note:
        return Standing.noted(order.id, listener.note)
    return None


async def _start_same(
    runtime: Runtime, caller: Caller, at: tuple[str, str], order: Order, *, lent: bool = False
) -> bool:
    """Start a function called before without reading it: the statement that records the execution sees if it changed.

    Nobody is refused because of what it was. `lent`: whether the caller's right is not asked for.
    """
    known = lookup.recall(runtime, FUNCTION, at)
    if known is None:
        return False
    try:
        if not lent:
            caller.require(FUNCTION.plural, "execute", known.owner_id, *FUNCTION.where(known.namespace, known.name))
        values = checked(runtime, caller, known, order)
    except SinasError:
        return False
    return await insert_now(runtime, _INSERT_IF_SAME, order, values)

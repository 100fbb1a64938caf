"""Calling a function and waiting for its end, in as few round trips as it takes."""

from sqlalchemy import exists, select
from sqlalchemy.dialects.postgresql import insert

from sinas_server.functions.execute import (
    LOOK_SECONDS,
    NEW,
    Order,
    Standing,
    checked,
    insert_now,
    start_now,
    topic,
    wait,
)
from sinas_server.functions.kind import FUNCTION, FunctionSpec
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel import lookup
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import SinasError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow

_SAME = exists().where(
    ResourceRow.id == NEW["function_id"],
    ResourceRow.version == NEW["version"],
    ResourceRow.owner_id.is_not_distinct_from(NEW["function_owner_id"]),
    ResourceRow.is_active,
    ResourceRow.deleted_at.is_(None),
)
_INSERT_IF_SAME = (
    insert(ExecutionRow).from_select(list(NEW), select(*NEW.values()).where(_SAME)).returning(ExecutionRow.id)
)
"""Gives nothing if the function is not any more what it was when its parameters were made."""


async def call(runtime: Runtime, caller: Caller, at: tuple[str, str], order: Order, timeout_seconds: float) -> Standing:
    """Start an execution of the function at (namespace, name) and `wait` for it.

    Raises what `lookup.use` and `execute.start` raise. Not for orders that may mean an earlier execution.
    """
    async with runtime.signals.listen(topic(order.id)) as listener:
        await _start(runtime, caller, at, order)
        # What has just begun has not ended: no look before the signal, and none after one that tells all.
        if await listener.wait(min(LOOK_SECONDS, timeout_seconds)) and listener.note:
            return Standing.noted(order.id, listener.note)
    return Standing.of(await wait(runtime, order.id, timeout_seconds))


async def _start(runtime: Runtime, caller: Caller, at: tuple[str, str], order: Order) -> None:
    """A function called before is not read again: the statement that records the execution sees whether it changed.

    Nobody is refused because of what it was.
    """
    known = lookup.recall(runtime, FUNCTION, at)
    if known is not None and await _start_same(runtime, caller, known, order):
        return
    function = await lookup.use(runtime.database, caller, FUNCTION, at, "execute")
    lookup.remember(runtime, function, size=len(function.spec.code))
    await start_now(runtime, caller, function, order)


async def _start_same(runtime: Runtime, caller: Caller, known: Resource[FunctionSpec], order: Order) -> bool:
    try:
        caller.require(FUNCTION.plural, "execute", known.owner_id, *FUNCTION.where(known.namespace, known.name))
        values = checked(runtime, caller, known, order)
    except SinasError:
        return False
    return await insert_now(runtime, _INSERT_IF_SAME, order, values)

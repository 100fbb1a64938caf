"""Functions of which only so many executions may run at a time: which of them workers may claim.

An execution of such a function is inserted as held, which no worker claims, and admitted as soon as there is room: at
once, when another one ends, or, if a process died in between, by the loop. Claiming itself knows nothing of limits.
"""

from uuid import UUID

import structlog
from sqlalchemy import Integer, cast, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db.direct import constant
from sinas_server.functions.tables import QUEUE, ExecutionRow
from sinas_server.kernel.job import wake
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow

log = structlog.get_logger()
EVERY_SECONDS = 1.0
_PENDING, _RUNNING = constant("PENDING"), constant("RUNNING")
_LIMITED = ExecutionRow.max_concurrency.is_not(None)
_WAITS = (_LIMITED, ExecutionRow.held, ExecutionRow.status == _PENDING, ExecutionRow.run_at <= func.now())
_WAITING = select(ExecutionRow.function_id).where(*_WAITS).distinct()


async def admit(runtime: Runtime, function_id: UUID) -> None:
    """Let workers claim the function's held executions for which there is room; if not now, the loop does.

    What it follows has been done: nobody is to be told that it has not.
    """
    try:
        await _admit(runtime, function_id)
    except SQLAlchemyError as error:
        log.warning("executions are admitted later", function=str(function_id), error=str(error).partition("\n")[0])


async def _admit(runtime: Runtime, function_id: UUID) -> None:
    """Let workers claim as many of the function's held executions as its limit of this moment leaves room for.

    Those that others wait for come first, like in every queue. The lock on the function's row makes processes take
    turns, so that none counts what another one is just admitting.
    """
    of_function = ExecutionRow.function_id == function_id
    async with runtime.database.unit() as db:
        limit = await db.scalar(
            select(cast(ResourceRow.spec["max_concurrency"].as_string(), Integer))
            .where(ResourceRow.id == function_id, ResourceRow.deleted_at.is_(None))
            .with_for_update(key_share=True)
        )
        busy = select(func.count()).where(
            of_function, _LIMITED, ~ExecutionRow.held, ExecutionRow.status.in_([_PENDING, _RUNNING])
        )
        room = None if limit is None else max(0, limit - (await db.execute(busy)).scalar_one())
        first = select(ExecutionRow.id).where(of_function, *_WAITS)
        first = first.order_by(ExecutionRow.depth.desc(), ExecutionRow.run_at).limit(room)
        admitted = await db.execute(
            update(ExecutionRow).where(ExecutionRow.id.in_(first)).values(held=False).returning(ExecutionRow.depth),
            execution_options={"synchronize_session": False},
        )
        depths = [row.depth for row in admitted]
    for depth in depths:
        await wake(runtime, QUEUE, depth)


async def _admit_all(runtime: Runtime) -> None:
    """What has become due, and what was missed by a process that died or a limit that was raised."""
    for row in await runtime.database.lookup(_WAITING, {}):
        await _admit(runtime, row.function_id)


ADMIT_LOOP = Loop("admit executions of limited functions", EVERY_SECONDS, _admit_all)

"""Telling the end of an execution to the address that its caller named."""

import orjson
from pydantic import JsonValue
from sqlalchemy import func, select, update

from sinas_server.backends.db.direct import constant
from sinas_server.functions.tables import ENDED, ExecutionRow
from sinas_server.kernel.delivery import send
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime

EVERY_SECONDS = 1.0
AT_ONCE = 100
MAX_RESULT = 1 << 16
"""Bytes of a result that travel along; a larger one is to be asked for."""


_UNTOLD = select(ExecutionRow.id).where(
    ExecutionRow.callback_url.is_not(None),
    ExecutionRow.called_back_at.is_(None),
    ExecutionRow.status.in_(list(map(constant, ENDED))),
)
_ANY = _UNTOLD.limit(1)
# A CTE, which is asked once, however the rest is planned.
_SOME = _UNTOLD.limit(AT_ONCE).with_for_update(skip_locked=True).cte("untold")
_TOLD = (
    update(ExecutionRow)
    .where(ExecutionRow.id.in_(select(_SOME.c.id)))
    .values(called_back_at=func.now())
    .returning(ExecutionRow)
)


async def _tell_ends(runtime: Runtime) -> None:
    """Queue a message for each execution that has ended and was not told: whoever ended it, and however."""
    full = bool(await runtime.database.lookup(_ANY, {}))
    while full:
        async with runtime.database.unit() as db:
            told = await db.scalars(_TOLD, execution_options={"synchronize_session": False})
            rows = told.all()
            for row in rows:
                # A dead letter that is tried again ends again, and with another attempt.
                message_id = f"execution_{row.id}_{row.attempt}"
                await send(db, runtime, row.callback_url or "", message_id, ended_message(row))
        full = len(rows) == AT_ONCE


def ended_message(row: ExecutionRow) -> dict[str, JsonValue]:
    """What the receiver gets: `type` is `execution.completed`, `execution.failed` or `execution.cancelled`."""
    ended_at = row.completed_at.isoformat() if row.completed_at else None
    large = len(orjson.dumps(row.output_data)) > MAX_RESULT
    return {
        "type": f"execution.{row.status.lower()}",
        "timestamp": ended_at,
        "data": {
            "execution_id": str(row.id),
            "function": f"{row.namespace}/{row.name}",
            "status": row.status,
            "output_data": None if large else row.output_data,
            "output_omitted": large,
            "error": row.error,
            "cause": row.cause,
            "trigger_id": row.trigger_id,
            "batch_id": str(row.batch_id) if row.batch_id else None,
            "batch_index": row.batch_index,
            "attempt": row.attempt,
            "started_at": row.started_at.isoformat() if row.started_at else None,
            "completed_at": ended_at,
            "duration_ms": row.duration_ms,
        },
    }


CALLBACK_LOOP = Loop("tell the ends of executions", EVERY_SECONDS, _tell_ends)

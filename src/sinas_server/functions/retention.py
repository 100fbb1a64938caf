"""Forgetting executions and batches that ended longer ago than `EXECUTION_RETENTION_DAYS`."""

from datetime import timedelta

from sqlalchemy import delete, select

from sinas_server.functions.tables import ENDED, ExecutionRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import BatchRow
from sinas_server.kit.clock import now

EVERY_SECONDS = 300.0
AT_ONCE = 500
"""Rows deleted in one statement, so that none holds locks for long."""


async def purge_executions(runtime: Runtime) -> None:
    """Delete what is old, the oldest first; dead letters too. What has not ended is kept however old it is."""
    limit = now() - timedelta(days=runtime.settings.execution_retention_days)
    # What ended before was asked for before, too: that finds it by an index.
    old = (
        select(ExecutionRow.id)
        .where(ExecutionRow.created_at < limit, ExecutionRow.completed_at < limit, ExecutionRow.status.in_(ENDED))
        .order_by(ExecutionRow.created_at)
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)
        .cte("old")  # which is asked once, however the rest is planned
    )
    gone = AT_ONCE
    while gone == AT_ONCE:
        gone = len(
            await runtime.database.rows(
                delete(ExecutionRow).where(ExecutionRow.id.in_(select(old.c.id))).returning(ExecutionRow.id)
            )
        )
    await runtime.database.rows(delete(BatchRow).where(BatchRow.created_at < limit, BatchRow.finished_at < limit))


RETENTION_LOOP = Loop("purge of old executions", EVERY_SECONDS, purge_executions)

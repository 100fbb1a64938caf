"""Forgetting what was deleted longer ago than it can be restored, and tasks that are done."""

from datetime import timedelta

from sqlalchemy import and_, delete, or_

from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow, TaskRow
from sinas_server.kit.clock import now

DONE_KEPT = timedelta(days=1)
FAILED_KEPT = timedelta(days=14)


async def purge(runtime: Runtime) -> None:
    """Delete the rows of resources whose time for restoring is over."""
    limit = now() - timedelta(days=runtime.settings.deleted_retention_days)
    async with runtime.database.unit() as db:
        await db.execute(delete(ResourceRow).where(ResourceRow.deleted_at < limit))


async def purge_tasks(runtime: Runtime) -> None:
    """Delete tasks that were done a day ago, and those that failed `FAILED_KEPT` ago: they hold mails and messages."""
    done = and_(TaskRow.status == "COMPLETED", TaskRow.finished_at < now() - DONE_KEPT)
    failed = and_(TaskRow.status == "FAILED", TaskRow.created_at < now() - FAILED_KEPT)
    await runtime.database.rows(delete(TaskRow).where(or_(done, failed)))


TASKS_LOOP = Loop("purge of tasks", 3600, purge_tasks)

PURGE_LOOP = Loop("purge of deleted resources", 3600, purge)

"""Forgetting what was deleted longer ago than it can be restored."""

from datetime import timedelta

from sqlalchemy import delete

from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kit.clock import now


async def purge(runtime: Runtime) -> None:
    """Delete the rows of resources whose time for restoring is over."""
    limit = now() - timedelta(days=runtime.settings.deleted_retention_days)
    async with runtime.database.unit() as db:
        await db.execute(delete(ResourceRow).where(ResourceRow.deleted_at < limit))


PURGE_LOOP = Loop("purge of deleted resources", 3600, purge)

"""Forgetting sets of packages that nothing uses and nobody asks about any more."""

from datetime import timedelta

from sqlalchemy import delete, or_, select

from sinas_server.dependencies.sets import newest_set, ready_set, set_in_force
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now

KEPT = 50
"""How many of those that were made, or failed, are kept as history."""
YOUNG = timedelta(days=1)
"""Nothing younger is deleted: somebody may be looking at it."""


async def prune_sets(runtime: Runtime) -> None:
    """Delete superseded sets and all but the newest; never the one in force, in use, or the last one asked for."""
    database = runtime.database
    needed = [await set_in_force(database), await ready_set(database), await newest_set(database)]
    over = PackageSetRow.status.in_(("COMPLETED", "FAILED"))
    history = select(PackageSetRow.id).where(over).order_by(PackageSetRow.created_at.desc()).limit(KEPT)
    await database.rows(
        delete(PackageSetRow).where(
            PackageSetRow.id.not_in([row.id for row in needed if row is not None]),
            PackageSetRow.created_at < now() - YOUNG,
            or_(PackageSetRow.status == "SUPERSEDED", over & PackageSetRow.id.not_in(history)),
        )
    )


PRUNE_LOOP = Loop("purge of old sets of packages", 3600, prune_sets)

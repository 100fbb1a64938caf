"""What an installation is given once: it can be changed and deleted, and does not come back by itself."""

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.kind import Kind, S
from sinas_server.kernel.tables import ResourceRow, SeedRow
from sinas_server.kernel.unit import Db


async def seed(db: Db, caller: Caller, kind: Kind[S], name: tuple[str, str], spec: S) -> None:
    """Create a resource unless it was ever given, or something has this name; by one of several that start at once."""
    namespace, own_name = name
    given = insert(SeedRow).values(kind=kind.name, namespace=namespace, name=own_name)
    if await db.scalar(given.on_conflict_do_nothing().returning(SeedRow.kind)) is None:
        return
    taken = select(ResourceRow.id).where(
        ResourceRow.kind == kind.name, ResourceRow.namespace == namespace, ResourceRow.name == own_name
    )
    if await db.scalar(taken.limit(1)) is None:
        await store.create(db, caller, kind, name, spec)

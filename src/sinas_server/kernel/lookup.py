"""Resources at runtime doors: read by name in one cheap round trip, outside of any transaction."""

from sqlalchemy import Text, bindparam, select

from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.kind import Kind, S
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Database

_BY_NAME = select(*ResourceRow.__table__.columns).where(
    ResourceRow.kind == bindparam("of_kind", type_=Text),
    ResourceRow.scope == "",
    ResourceRow.namespace == bindparam("of_namespace", type_=Text),
    ResourceRow.name == bindparam("of_name", type_=Text),
    ResourceRow.deleted_at.is_(None),
)


async def find(database: Database, kind: Kind[S], namespace: str, name: str) -> Resource[S] | None:
    """What stands under a name, for the platform's own work; None if there is nothing. Not for kinds `per_user`."""
    parameters = {"of_kind": kind.name, "of_namespace": namespace, "of_name": name}
    rows = await database.lookup(_BY_NAME, parameters)
    return store.load(database, kind, ResourceRow(**rows[0]._asdict())) if rows else None


async def use(database: Database, caller: Caller, kind: Kind[S], at: tuple[str, str], action: str) -> Resource[S]:
    """What stands at (namespace, name), as `store.use` gives it: 404, then 403, then 404 for an inactive one."""
    resource = await find(database, kind, *at)
    if resource is None:
        raise NotFoundError(f"{kind.called(*at)} not found")
    caller.require(kind.plural, action, resource.owner_id, *kind.where(*at))
    if not resource.is_active:
        raise NotFoundError(f"{kind.called(*at)} is not active")
    return resource

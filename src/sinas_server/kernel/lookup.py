"""Resources at runtime doors: read by name in one cheap round trip, outside of any transaction."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import ARRAY, Text, Uuid, bindparam, func, select, tuple_

from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.kind import Kind, S, reference
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.tool import AgentContext
from sinas_server.kernel.unit import Database

MAX_REMEMBERED = 256
"""Resources; those remembered first are forgotten first."""
MAX_REMEMBERED_SIZE = 1 << 16
"""Characters."""

_BY_NAME = select(*ResourceRow.__table__.columns).where(
    ResourceRow.kind == bindparam("of_kind", type_=Text),
    ResourceRow.scope == "",
    ResourceRow.namespace == bindparam("of_namespace", type_=Text),
    ResourceRow.name == bindparam("of_name", type_=Text),
    ResourceRow.deleted_at.is_(None),
)
_NAMED = (
    func.unnest(bindparam("of_namespaces", type_=ARRAY(Text)), bindparam("of_names", type_=ARRAY(Text)))
    .table_valued("namespace", "name")
    .render_derived()
)
_ACTIVE = select(*ResourceRow.__table__.columns).where(
    ResourceRow.kind == bindparam("of_kind", type_=Text),
    ResourceRow.scope == "",
    tuple_(ResourceRow.namespace, ResourceRow.name).in_(select(_NAMED.c.namespace, _NAMED.c.name)),
    ResourceRow.deleted_at.is_(None),
    ResourceRow.is_active,
)
_PLACE = select(ResourceRow.namespace, ResourceRow.name).where(
    ResourceRow.id == bindparam("of_id", type_=Uuid),
    ResourceRow.kind == bindparam("of_kind", type_=Text),
    ResourceRow.deleted_at.is_(None),
)


async def place(database: Database, kind: Kind[S], resource_id: UUID) -> tuple[str, str]:
    """The (namespace, name) behind an id, for routes that go by ids. Raises `NotFoundError`."""
    rows = await database.lookup(_PLACE, {"of_id": resource_id, "of_kind": kind.name})
    if not rows:
        raise NotFoundError(f"{kind.label} '{resource_id}' not found")
    return rows[0].namespace, rows[0].name


async def find(database: Database, kind: Kind[S], namespace: str, name: str) -> Resource[S] | None:
    """What stands under a name, for the platform's own work; None if there is nothing. Not for kinds `per_user`."""
    parameters = {"of_kind": kind.name, "of_namespace": namespace, "of_name": name}
    rows = await database.lookup(_BY_NAME, parameters)
    return store.load(database, kind, ResourceRow.loaded(rows[0]._asdict())) if rows else None


async def use(database: Database, caller: Caller, kind: Kind[S], at: tuple[str, str], action: str) -> Resource[S]:
    """What stands at (namespace, name), as `store.use` gives it: 404, then 403, then 404 for an inactive one."""
    resource = await find(database, kind, *at)
    if resource is None:
        raise NotFoundError(f"{kind.called(*at)} not found")
    caller.require(kind.plural, action, resource.owner_id, *kind.where(*at))
    if not resource.is_active:
        raise NotFoundError(f"{kind.called(*at)} is not active")
    return resource


def recall(runtime: Runtime, kind: Kind[S], at: tuple[str, str]) -> Resource[S] | None:
    """What `remember` was last told of a name: what it is now must be found out where it is used."""
    return runtime.remembered.get((kind.name, *at))


def remember(runtime: Runtime, resource: Resource[S], size: int) -> None:
    """Keep a resource for `recall`, unless it is large."""
    key = (resource.kind, resource.namespace, resource.name)
    runtime.remembered.pop(key, None)
    if size <= MAX_REMEMBERED_SIZE:
        while len(runtime.remembered) >= MAX_REMEMBERED:
            del runtime.remembered[next(iter(runtime.remembered))]
        runtime.remembered[key] = resource


def where(text: str) -> tuple[str, str]:
    """The namespace and name that a reference like `namespace/name` means."""
    ref = reference("", text, hard=False, field="")
    return ref.namespace, ref.name


async def lent(
    database: Database, agent: AgentContext, kind: Kind[S], wanted: Iterable[str], action: str
) -> list[Resource[S]]:
    """Of what an agent enables (`namespace/name`), in that order: what is active and its owner may use now.

    The owner's right counts: who may chat with an agent may have it do what it was made for.
    """
    places = list(dict.fromkeys(map(where, wanted)))
    owner = agent.owner
    if not places or owner is None:
        return []
    parameters = {
        "of_kind": kind.name,
        "of_namespaces": [namespace for namespace, _ in places],
        "of_names": [name for _, name in places],
    }
    rows = [ResourceRow.loaded(row._asdict()) for row in await database.lookup(_ACTIVE, parameters)]
    found = {(row.namespace, row.name): row for row in rows}
    return [
        store.load(database, kind, found[at])
        for at in places
        if at in found and owner.allows(kind.plural, action, found[at].owner_id, *kind.where(*at))
    ]

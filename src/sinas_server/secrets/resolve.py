"""What a name stands for when code or a connector uses it: the user's private secret, else the shared one."""

from collections.abc import Mapping
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import select

from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db
from sinas_server.secrets.kind import SECRET

Detail = Mapping[str, JsonValue]


async def _usable(db: Db, user_id: UUID, owner: Caller, name: str | None) -> list[ResourceRow]:
    """The secrets that `owner`'s code may use for a user, private ones first."""
    query = select(ResourceRow).where(
        ResourceRow.kind == SECRET.name,
        ResourceRow.scope.in_(["", str(user_id)]),
        ResourceRow.deleted_at.is_(None),
        ResourceRow.is_active,
    )
    if name is not None:
        query = query.where(ResourceRow.name == name)
    rows = await db.scalars(query.order_by(ResourceRow.scope.desc(), ResourceRow.name))
    return [row for row in rows if owner.allows(SECRET.plural, "use", row.owner_id, row.name)]


async def resolve_secret(db: Db, user: Caller, owner: Caller, name: str, detail: Detail) -> str | None:
    """The value of a secret for `user` in code or a connector of `owner`; None if there is none that he may use.

    The owner's right to `use` it counts, for private secrets of others too: they would reach whatever he wrote. Each
    resolution is audited with `detail`, which says by what it is used. Raises `KeyMissingError` for one that cannot
    be decrypted.
    """
    found = await _usable(db, user.id, owner, name)
    if not found:
        return None
    spec = store.load(db, SECRET, found[0]).spec
    await audit(db, user, "use", (SECRET.name, name), {"visibility": spec.visibility, **detail})
    return spec.value


async def usable_names(db: Db, user: Caller, owner: Caller) -> list[str]:
    """The names that `resolve_secret` would find, in alphabetical order."""
    return sorted({row.name for row in await _usable(db, user.id, owner, None)})

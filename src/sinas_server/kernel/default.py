"""Kinds of which one resource at most is the default (`is_default` of its spec): the one that became it last."""

from sqlalchemy import func, select

from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.kind import Kind, S
from sinas_server.kernel.store import Change, Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db

LOCK = 0x51AA5004
"""Of two that become the default at once neither would see the other; they take turns."""


async def replace_default(db: Db, kind: Kind[S], new: Resource[S]) -> None:
    """Have a resource that became the default, in this transaction, take the place of the one before."""
    await db.execute(select(func.pg_advisory_xact_lock(LOCK)))
    others = await db.execute(
        select(ResourceRow.namespace, ResourceRow.name).where(
            ResourceRow.kind == kind.name,
            ResourceRow.deleted_at.is_(None),
            ResourceRow.id != new.id,
            ResourceRow.spec["is_default"].as_boolean(),
        )
    )
    for namespace, name in others.all():
        await store.change(db, SYSTEM, kind, namespace, name, Change({"is_default": False}))

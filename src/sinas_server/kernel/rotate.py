"""Encrypting under the first of several keys what was encrypted under another, so that the others can go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, select, update

from sinas_server.kernel.kind import AnyKind
from sinas_server.kernel.tables import TAKEN, ResourceRow, ResourceVersionRow, TaskRow
from sinas_server.kernel.unit import Database
from sinas_server.kit.crypto import Sealer, UndecryptableError

BATCH = 200
"""How many rows are locked at a time."""


@dataclass
class Rotation:
    """What was found."""

    resealed: int = 0
    """Values that are now encrypted under the first key."""
    unreadable: int = 0
    """Values whose key is not in the list; they stay as they are."""


async def rotate(database: Database, kinds: Sequence[AnyKind]) -> Rotation:
    """Go through everything that kinds and queued tasks keep sealed, in transactions of a few rows each.

    Safe to be interrupted and repeated, and beside writers: they use the first key already.
    """
    done = Rotation()
    for kind in kinds:
        fields = kind.spec.secret_fields()
        if fields:
            of_kind = select(ResourceRow.id).where(ResourceRow.kind == kind.name)
            await _through(database, ResourceRow, (ResourceRow.kind == kind.name,), fields, done)
            await _through(database, ResourceVersionRow, (ResourceVersionRow.resource_id.in_(of_kind),), fields, done)
    await _through(database, TaskRow, (TaskRow.status.in_(("PENDING", *TAKEN)),), frozenset({"sealed"}), done)
    return done


async def _through(
    database: Database,
    table: Any,
    where: Sequence[ColumnElement[bool]],
    fields: frozenset[str],
    done: Rotation,
) -> None:
    last = UUID(int=0)
    column = table.payload if table is TaskRow else table.spec
    while True:
        async with database.unit() as db:
            query: Select[Any] = select(table.id, column.label("held")).where(table.id > last, *where)
            rows = (await db.execute(query.order_by(table.id).limit(BATCH).with_for_update())).all()
            for row in rows:
                held = {
                    key: _resealed(value, db.sealer, done) if key in fields else value
                    for key, value in row.held.items()
                }
                if held != row.held:
                    await db.execute(update(table).where(table.id == row.id).values({column.key: held}))
        if len(rows) < BATCH:
            return
        last = rows[-1].id


def _resealed(value: object, sealer: Sealer, done: Rotation) -> object:
    """The same under the first key; what is not sealed, and what cannot be read, as it is."""
    if isinstance(value, dict):
        return {key: _resealed(item, sealer, done) for key, item in value.items()}
    if isinstance(value, list):
        return [_resealed(item, sealer, done) for item in value]
    if not isinstance(value, str) or sealer.is_current(value):
        return value
    try:
        plain = sealer.open(value)
    except UndecryptableError:
        done.unreadable += 1
        return value
    done.resealed += 1
    return sealer.seal(plain)

"""References between resources: recorded on write, so that nothing in use disappears under its users."""

from collections.abc import Iterable, Sequence
from typing import Literal
from uuid import UUID

from sqlalchemy import and_, delete, insert, or_, select

from sinas_server.kernel.errors import ConflictError, InvalidError
from sinas_server.kernel.kind import Ref
from sinas_server.kernel.tables import ReferenceRow, ResourceRow
from sinas_server.kernel.unit import Db


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None


async def missing(db: Db, refs: Iterable[Ref]) -> list[Ref]:
    """Those that point to nothing."""
    found: list[Ref] = []
    for ref in refs:
        query = select(ResourceRow.id).where(ResourceRow.kind == ref.kind, ResourceRow.deleted_at.is_(None))
        if ref.id is not None:
            query = query.where(ResourceRow.id == _uuid(ref.id))
        else:
            query = query.where(ResourceRow.namespace == ref.namespace, ResourceRow.name == ref.name)
        if ref.hard:  # held until the end of the transaction, so that nobody deletes or renames it meanwhile
            query = query.with_for_update(read=True)
        if await db.scalar(query) is None:
            found.append(ref)
    return found


async def record(db: Db, source: UUID, refs: Sequence[Ref]) -> list[str]:
    """Store what `source` points to. Missing hard ones raise `InvalidError`; missing soft ones become warnings."""
    gone = await missing(db, refs)
    problems = [(("body", ref.field), f"{ref} does not exist") for ref in gone if ref.hard]
    if problems:
        raise InvalidError(problems, "reference_error")
    await db.execute(delete(ReferenceRow).where(ReferenceRow.source_id == source))
    if refs:
        rows = [
            {
                "source_id": source,
                "kind": ref.kind,
                "namespace": ref.namespace,
                "name": ref.name,
                "target_id": _uuid(ref.id),
                "hard": ref.hard,
            }
            for ref in refs
        ]
        await db.execute(insert(ReferenceRow), rows)
    return [f"{ref.field}: {ref} does not exist" for ref in gone]


async def refuse_if_used(db: Db, target: ResourceRow, verb: Literal["delete", "rename"]) -> None:
    """Raise `ConflictError` naming what holds a hard reference to `target`; one by id survives a rename."""
    by_name = and_(
        ReferenceRow.target_id.is_(None), ReferenceRow.namespace == target.namespace, ReferenceRow.name == target.name
    )
    user = await db.execute(
        select(ResourceRow.kind, ResourceRow.namespace, ResourceRow.name)
        .join(ReferenceRow, ReferenceRow.source_id == ResourceRow.id)
        .where(
            ResourceRow.deleted_at.is_(None),
            ResourceRow.id != target.id,
            ReferenceRow.hard,
            ReferenceRow.kind == target.kind,
            by_name if verb == "rename" else or_(ReferenceRow.target_id == target.id, by_name),
        )
        .limit(5)
    )
    names = [f"{row.kind} {'/'.join(part for part in (row.namespace, row.name) if part)}" for row in user]
    if names:
        raise ConflictError(f"cannot {verb} {target.kind} '{target.name}': it is used by {', '.join(names)}")

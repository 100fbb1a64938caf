"""Deleting a user: what he declared passes to somebody or stops the deletion; his own data go with him."""

from uuid import UUID

from sqlalchemy import case, delete, select, update
from sqlalchemy.exc import IntegrityError

from sinas_server.identity.guard import require_for_role
from sinas_server.identity.tables import RolePermissionRow, UserRoleRow, UserRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, InvalidError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db

SHOWN = 10
"""How many of the things in the way a refusal names."""


async def delete_user(db: Db, runtime: Runtime, caller: Caller, user_id: UUID, heir_id: UUID | None) -> int:
    """Delete a user with keys, sessions and own data; what he declared passes to the heir. Gives how much passed.

    Raises `ConflictError` if he declared something and there is no heir, or if the heir has one of that name, and
    `ForbiddenError` for an heir with rights that the caller does not hold: what is declared acts with its owner's.
    """
    for depart in runtime.departures:  # first: what they delete passes to nobody
        await depart(db, runtime, user_id)
    if heir_id is None:
        await _refuse_if_owner(db, user_id)
        passed = 0
    else:
        await _check_heir(db, caller, user_id, heir_id)
        passed = await _pass_on(db, user_id, heir_id)
    await db.execute(delete(UserRow).where(UserRow.id == user_id))
    return passed


async def _refuse_if_owner(db: Db, user_id: UUID) -> None:
    owned = select(ResourceRow.kind, ResourceRow.namespace, ResourceRow.name).where(
        ResourceRow.owner_id == user_id, ResourceRow.deleted_at.is_(None)
    )
    order = (ResourceRow.kind, ResourceRow.namespace, ResourceRow.name)
    rows = (await db.execute(owned.order_by(*order).limit(SHOWN + 1))).all()
    if rows:
        names = [f"{row.kind} {'/'.join(part for part in (row.namespace, row.name) if part)}" for row in rows]
        more = ", and more" if len(names) > SHOWN else ""
        raise ConflictError(
            f"The user owns {', '.join(names[:SHOWN])}{more}: name a new owner with ?transfer_to=<user id>"
        )


async def _check_heir(db: Db, caller: Caller, user_id: UUID, heir_id: UUID) -> None:
    known = select(UserRow.id).where(UserRow.id == heir_id, UserRow.id != user_id, UserRow.is_active)
    if await db.scalar(known.with_for_update(read=True)) is None:
        raise InvalidError([(("query", "transfer_to"), "must be another user, and an active one")])
    if heir_id == caller.id:
        return
    held = (
        select(RolePermissionRow.permission_key)
        .join(UserRoleRow, UserRoleRow.role_id == RolePermissionRow.role_id)
        .where(UserRoleRow.user_id == heir_id, RolePermissionRow.permission_value)
    )
    require_for_role(caller, sorted(set(await db.scalars(held))), "the new owner holds")


async def _pass_on(db: Db, user_id: UUID, heir_id: UUID) -> int:
    """Change the owner, also of what was deleted and can be restored; names per user move to the heir's."""
    moved = (
        update(ResourceRow)
        .where(ResourceRow.owner_id == user_id)
        .values(
            owner_id=heir_id,
            scope=case((ResourceRow.scope == str(user_id), str(heir_id)), else_=ResourceRow.scope),
        )
        .returning(ResourceRow.id)
    )
    try:
        async with db.begin_nested():
            rows = await db.execute(moved, execution_options={"synchronize_session": False})
            return len(rows.all())
    except IntegrityError as error:
        raise ConflictError("The new owner has something of the same kind and name: rename one of them") from error

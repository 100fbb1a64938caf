"""What no change of rights may do: give more than its maker holds, or leave nobody in charge."""

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import and_, func, select

from sinas_server.identity.reference import EVERYTHING
from sinas_server.identity.tables import RolePermissionRow, UserRoleRow, UserRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, ForbiddenError, NotFoundError
from sinas_server.kernel.unit import Db

LOCK = 0x51AA5002
"""Taken by changes that could remove an administrator, so that two of them see each other."""


_GIVES_EVERYTHING = and_(
    RolePermissionRow.permission_value, RolePermissionRow.permission_key.in_((EVERYTHING, "*.*:all"))
)


def require_all(caller: Caller, keys: Iterable[str], what: str) -> None:
    """Raise `ForbiddenError` naming the first of `keys` that the caller does not hold."""
    for key in keys:
        if not caller.has(key):
            raise ForbiddenError(f"Not authorized: {what} {key}, which you do not hold")


def require_on(caller: Caller, resource: str, action: str, owner: UUID | None, what: str) -> None:
    """Raise `ForbiddenError` for what the caller may not do, `NotFoundError` for what he may not know of."""
    if caller.allows(resource, action, owner):
        return
    if action != "read" and caller.allows(resource, "read", owner):
        caller.require(resource, action, owner)
    caller.require(resource, action, caller.id)
    raise NotFoundError(f"{what} not found")


def require_for_role(caller: Caller, keys: Iterable[str], what: str) -> None:
    """The same for what goes through a role; administrators may also give permissions of other services."""
    if not caller.has(EVERYTHING):
        require_all(caller, keys, what)


async def administrators(db: Db) -> int:
    """How many active users hold everything."""
    holders = (
        select(func.count(UserRow.id.distinct()))
        .join(UserRoleRow, UserRoleRow.user_id == UserRow.id)
        .join(RolePermissionRow, RolePermissionRow.role_id == UserRoleRow.role_id)
        .where(UserRow.is_active, _GIVES_EVERYTHING)
    )
    return (await db.execute(holders)).scalar_one()


async def some_administrator(db: Db, email: str) -> UUID:
    """The id of an active user who holds everything: the one with this address if he does, else the first there was."""
    holder = (
        select(UserRow.id)
        .join(UserRoleRow, UserRoleRow.user_id == UserRow.id)
        .join(RolePermissionRow, RolePermissionRow.role_id == UserRoleRow.role_id)
        .where(UserRow.is_active, _GIVES_EVERYTHING)
        .order_by((UserRow.email == email).desc(), UserRow.created_at, UserRow.id)
        .limit(1)
    )
    return (await db.execute(holder)).scalar_one()


async def keep_an_administrator(db: Db) -> None:
    """Called after a change, before its commit: raises `ConflictError` if nobody would be left who holds everything."""
    await db.flush()
    await db.execute(select(func.pg_advisory_xact_lock(LOCK)))
    if not await administrators(db):
        raise ConflictError("The last administrator cannot be removed")


async def is_administrator(db: Db, user_id: UUID) -> bool:
    """Whether this user holds everything, active or not."""
    found = await db.execute(
        select(RolePermissionRow.id)
        .join(UserRoleRow, RolePermissionRow.role_id == UserRoleRow.role_id)
        .where(UserRoleRow.user_id == user_id, _GIVES_EVERYTHING)
        .limit(1)
    )
    return found.first() is not None

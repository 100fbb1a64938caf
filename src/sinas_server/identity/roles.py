"""The routes of roles, their members and their permissions. Nobody gives through a role what he does not hold."""

from datetime import datetime
from typing import Annotated, TypeAlias
from uuid import UUID

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from sinas_server.identity.guard import keep_an_administrator, require_for_role, require_on
from sinas_server.identity.reference import (
    DESCRIPTIONS,
    PermissionReference,
    default_permissions,
    permission_reference,
)
from sinas_server.identity.tables import RolePermissionRow, RoleRow, UserRoleRow, UserRow
from sinas_server.kernel.access import Caller, check_key
from sinas_server.kernel.errors import AlreadyExistsError, BadRequestError, NotFoundError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.unit import Db

roles_router = new_router("/roles", "roles")
permissions_router = new_router("/permissions", "permissions")


def domain(value: str | None) -> str | None:
    """The domain of e-mail addresses: lower case, with or without its @."""
    if value is None:
        return None
    name = value.strip().lower().removeprefix("@")
    if not name or not all(c.isalnum() or c in ".-" for c in name):
        raise ValueError("must be a domain, like example.com")
    return name


NAME_PATTERN = r"^[^/\x00-\x1f\x7f]+$"
Domain: TypeAlias = Annotated[Annotated[str, Field(max_length=255)] | None, AfterValidator(domain)]
RoleName: TypeAlias = Annotated[str, Path(max_length=255, description="The role's name.")]
UserId: TypeAlias = Annotated[UUID, Path(description="The user's id.")]


class RoleCreate(BaseModel):
    """A new role, without permissions."""

    name: str = Field(min_length=1, max_length=255, pattern=NAME_PATTERN, description="Its name, which is unique.")
    description: str | None = Field(None, description="What the role is for.")
    email_domain: Domain = Field(None, description="New users with addresses of this domain get the role.")


class RoleUpdate(BaseModel):
    """Changes; what is absent stays as it is."""

    name: str | None = Field(None, min_length=1, max_length=255, pattern=NAME_PATTERN, description="Its new name.")
    description: str | None = Field(None, description="What the role is for.")
    email_domain: Domain = Field(None, description="New users with addresses of this domain get the role.")


class RoleResponse(BaseModel):
    """A role."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="Its id.")
    name: str = Field(description="Its name.")
    description: str | None = Field(description="What the role is for.")
    email_domain: str | None = Field(description="New users with addresses of this domain get the role.")
    created_at: datetime = Field(description="When it was created.")
    updated_at: datetime = Field(description="When it was last changed.")


class UserRoleAdd(BaseModel):
    """Who shall be in the role."""

    user_id: UUID = Field(description="The user's id.")


class UserRoleResponse(BaseModel):
    """A member of a role."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="The id of the membership.")
    role_id: UUID = Field(description="The role.")
    user_id: UUID = Field(description="The user.")
    user_email: str = Field(description="The user's e-mail address.")
    active: bool = Field(description="Whether the user is active, so that the membership has an effect.")
    added_at: datetime = Field(description="Since when.")


class RolePermissionUpdate(BaseModel):
    """A permission, given or not."""

    permission_key: str = Field(description="Like `sinas.agents.read:own`, or one of your own applications.")
    permission_value: bool = Field(description="True: the role holds it. False: it does not.")


class RolePermissionResponse(BaseModel):
    """A permission of a role."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="The id of this entry.")
    role_id: UUID = Field(description="The role.")
    permission_key: str = Field(description="The permission.")
    permission_value: bool = Field(description="Whether the role holds it.")
    created_at: datetime = Field(description="When it was first set.")
    updated_at: datetime = Field(description="When it was last set.")


_MEMBERS = select(
    UserRoleRow.id,
    UserRoleRow.role_id,
    UserRoleRow.user_id,
    UserRow.email.label("user_email"),
    UserRow.is_active.label("active"),
    UserRoleRow.added_at,
).join_from(UserRoleRow, UserRow)


@roles_router.get("/permissions/reference", summary="List all known permissions")
@permissions_router.get("/reference", summary="List all known permissions")
async def reference(runtime: Run, caller: CurrentCaller) -> list[PermissionReference]:
    """Every resource with the actions that can be permitted on it."""
    caller.require("roles", "read", caller.id)
    return permission_reference(runtime)


@roles_router.get("/permissions/defaults", summary="List the permissions of the built-in roles")
async def defaults(runtime: Run, caller: CurrentCaller) -> dict[str, list[str]]:
    """What the built-in roles hold in a new installation, by role."""
    caller.require("roles", "read", caller.id)
    return default_permissions(runtime.kinds.values(), runtime.resources)


@roles_router.post("", status_code=201, summary="Create a role")
async def create(body: RoleCreate, db: CurrentDb, caller: CurrentCaller) -> RoleResponse:
    """The role holds nothing yet."""
    caller.require("roles", "create", None)
    new = upsert(RoleRow).values(**body.model_dump()).on_conflict_do_nothing(index_elements=["name"])
    row = (await db.execute(new.returning(RoleRow))).scalar_one_or_none()
    if row is None:
        raise AlreadyExistsError(f"Role '{body.name}' already exists")
    await audit(db, caller, "create", ("role", row.name), body.model_dump(exclude={"name"}))
    return RoleResponse.model_validate(row)


@roles_router.get("", summary="List roles")
async def list_roles(
    db: CurrentDb,
    caller: CurrentCaller,
    skip: Annotated[int, Query(ge=0, le=MAX_INT, description="How many to leave out.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
) -> list[RoleResponse]:
    """By name; without `sinas.roles.read:all` only the roles the caller is in."""
    caller.require("roles", "read", caller.id)
    statement = select(RoleRow).order_by(RoleRow.name).offset(skip).limit(limit)
    if not caller.allows("roles", "read", None):
        statement = statement.where(RoleRow.name.in_(caller.roles))
    return [RoleResponse.model_validate(row) for row in (await db.execute(statement)).scalars()]


@roles_router.get("/{name}", summary="Get a role")
async def get(name: RoleName, db: CurrentDb, caller: CurrentCaller) -> RoleResponse:
    """A role by its name."""
    return RoleResponse.model_validate(await _found(db, caller, name, "read"))


@roles_router.patch("/{name}", summary="Update a role")
async def change(name: RoleName, body: RoleUpdate, db: CurrentDb, caller: CurrentCaller) -> RoleResponse:
    """Rename or describe it; `null` clears the description or the domain. Built-in roles keep their names."""
    role = await _editable(db, caller, name, "update")
    values = body.model_dump(exclude_unset=True)
    if values.get("name") is None:
        values.pop("name", None)
    if values.get("name", name) != name and name in DESCRIPTIONS:
        raise BadRequestError(f"The built-in role '{name}' cannot be renamed")
    try:
        changed = update(RoleRow).where(RoleRow.id == role.id).values(**values, updated_at=func.now())
        row = (await db.execute(changed.returning(RoleRow), execution_options=_FRESH)).scalar_one()
    except IntegrityError as error:
        raise AlreadyExistsError(f"Role '{values['name']}' already exists") from error
    await audit(db, caller, "update", ("role", name), values)
    return RoleResponse.model_validate(row)


@roles_router.delete("/{name}", status_code=204, summary="Delete a role")
async def remove(name: RoleName, db: CurrentDb, caller: CurrentCaller) -> None:
    """Its members lose at once what it gave them. Built-in roles cannot be deleted."""
    role = await _editable(db, caller, name, "delete")
    if name in DESCRIPTIONS:
        raise BadRequestError(f"The built-in role '{name}' cannot be deleted")
    await db.execute(delete(RoleRow).where(RoleRow.id == role.id))
    await keep_an_administrator(db)
    await audit(db, caller, "delete", ("role", name))


@roles_router.get("/{name}/members", summary="List the members of a role")
async def members(name: RoleName, db: CurrentDb, caller: CurrentCaller) -> list[UserRoleResponse]:
    """By e-mail address; without `sinas.roles.read:all` only the caller's own membership."""
    role = await _found(db, caller, name, "read")
    statement = _MEMBERS.where(UserRoleRow.role_id == role.id).order_by(UserRow.email)
    if not caller.allows("roles", "read", None):
        statement = statement.where(UserRow.id == caller.id)
    return [UserRoleResponse.model_validate(row) for row in await db.execute(statement)]


@roles_router.post("/{name}/members", summary="Add a user to a role")
async def add_member(name: RoleName, body: UserRoleAdd, db: CurrentDb, caller: CurrentCaller) -> UserRoleResponse:
    """Takes everything the role holds: nobody gives what he does not have. Adding a member again changes nothing."""
    role = await _editable(db, caller, name, "update")
    known = select(UserRow).where(UserRow.id == body.user_id)
    # Locked, so that nobody deletes the user meanwhile.
    user = await db.scalar(known.with_for_update(read=True, key_share=True))
    if user is None:
        raise NotFoundError("User not found")
    new = upsert(UserRoleRow).values(user_id=user.id, role_id=role.id).on_conflict_do_nothing()
    if (await db.execute(new.returning(UserRoleRow.id))).first() is not None:
        await audit(db, caller, "add_member", ("role", name), {"user": user.email})
    found = await db.execute(_MEMBERS.where(UserRoleRow.role_id == role.id, UserRoleRow.user_id == user.id))
    return UserRoleResponse.model_validate(found.one())


@roles_router.delete("/{name}/members/{user_id}", status_code=204, summary="Remove a user from a role")
async def remove_member(name: RoleName, user_id: UserId, db: CurrentDb, caller: CurrentCaller) -> None:
    """The user loses at once what the role gave."""
    role = await _editable(db, caller, name, "update")
    gone = delete(UserRoleRow).where(UserRoleRow.role_id == role.id, UserRoleRow.user_id == user_id)
    if (await db.execute(gone.returning(UserRoleRow.id))).first() is None:
        raise NotFoundError("The user is not in this role")
    await keep_an_administrator(db)
    await audit(db, caller, "remove_member", ("role", name), {"user_id": str(user_id)})


@roles_router.get("/{name}/permissions", summary="List the permissions of a role")
async def permissions(name: RoleName, db: CurrentDb, caller: CurrentCaller) -> list[RolePermissionResponse]:
    """By key."""
    role = await _found(db, caller, name, "read")
    found = select(RolePermissionRow).where(RolePermissionRow.role_id == role.id)
    rows = (await db.execute(found.order_by(RolePermissionRow.permission_key))).scalars()
    return [RolePermissionResponse.model_validate(row) for row in rows]


@roles_router.post("/{name}/permissions", summary="Set a permission of a role")
async def set_permission(
    name: RoleName, body: RolePermissionUpdate, db: CurrentDb, caller: CurrentCaller
) -> RolePermissionResponse:
    """Its members have it, or not, from their next request on."""
    check_key(body.permission_key, ("body", "permission_key"))
    role = await _editable(db, caller, name, "update")
    if body.permission_value:
        require_for_role(caller, [body.permission_key], "the role would hold")
    new = upsert(RolePermissionRow).values(role_id=role.id, **body.model_dump())
    new = new.on_conflict_do_update(
        index_elements=["role_id", "permission_key"],
        set_={"permission_value": body.permission_value, "updated_at": func.now()},
    )
    row = (await db.execute(new.returning(RolePermissionRow), execution_options=_FRESH)).scalar_one()
    await keep_an_administrator(db)
    await audit(db, caller, "set_permission", ("role", name), body.model_dump())
    return RolePermissionResponse.model_validate(row)


@roles_router.delete("/{name}/permissions", status_code=204, summary="Remove a permission of a role")
async def remove_permission(
    name: RoleName,
    db: CurrentDb,
    caller: CurrentCaller,
    permission_key: Annotated[str, Query(description="The permission, exactly as it was set.")],
) -> None:
    """Its members lose it from their next request on."""
    role = await _editable(db, caller, name, "update")
    check_key(permission_key, ("query", "permission_key"))
    gone = delete(RolePermissionRow).where(
        RolePermissionRow.role_id == role.id, RolePermissionRow.permission_key == permission_key
    )
    if (await db.execute(gone.returning(RolePermissionRow.id))).first() is None:
        raise NotFoundError("The role has no such permission")
    await keep_an_administrator(db)
    await audit(db, caller, "remove_permission", ("role", name), {"permission_key": permission_key})


_FRESH = {"populate_existing": True}


async def _found(db: Db, caller: Caller, name: str, action: str) -> RoleRow:
    """The role, locked until the transaction ends unless it is only read."""
    statement = select(RoleRow).where(RoleRow.name == name)
    statement = statement if action == "read" else statement.with_for_update()
    role = (await db.execute(statement)).scalar_one_or_none() if name.isprintable() else None
    owner = caller.id if role is not None and role.name in caller.roles else None
    require_on(caller, "roles", action, owner, f"Role '{name}'")
    if role is None:
        raise NotFoundError(f"Role '{name}' not found")
    return role


async def _editable(db: Db, caller: Caller, name: str, action: str) -> RoleRow:
    """The role, if its editor holds everything it holds."""
    role = await _found(db, caller, name, action)
    keys = select(RolePermissionRow.permission_key).where(
        RolePermissionRow.role_id == role.id, RolePermissionRow.permission_value
    )
    require_for_role(caller, sorted((await db.execute(keys)).scalars()), f"the role '{name}' holds")
    return role

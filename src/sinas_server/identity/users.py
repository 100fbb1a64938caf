"""The routes of users. Without `read:all` a caller knows of nobody but himself."""

from datetime import datetime
from typing import Annotated, TypeAlias
from uuid import UUID

import orjson
from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field, JsonValue
from sqlalchemy import ARRAY, Text, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from sinas_server.identity.departure import delete_user
from sinas_server.identity.guard import is_administrator, keep_an_administrator, require_on
from sinas_server.identity.members import join_first_roles
from sinas_server.identity.reference import EVERYTHING
from sinas_server.identity.sessions import end_of
from sinas_server.identity.tables import RoleRow, UserRoleRow, UserRow
from sinas_server.kernel.access import Caller, OwnedColumns
from sinas_server.kernel.errors import AlreadyExistsError, ForbiddenError, NotFoundError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.unit import Db

users_router = new_router("/users", "users")
UserId: TypeAlias = Annotated[UUID, Path(description="The user's id.")]
MAX_FIELDS_BYTES = 16_384


def small(value: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
    """The profile's free fields, refused beyond 16 KiB."""
    if value is not None and len(orjson.dumps(value)) > MAX_FIELDS_BYTES:
        raise ValueError(f"must not take more than {MAX_FIELDS_BYTES} bytes as JSON")
    return value


class CreateUserRequest(BaseModel):
    """A new user, who logs in with a code sent to the address."""

    email: EmailStr = Field(max_length=320, description="Stored in lower case.")


class UserUpdate(BaseModel):
    """Changes; what is absent or null stays as it is."""

    is_active: bool | None = Field(None, description="False: cannot log in, and every key and session stops at once.")
    custom_fields: Annotated[dict[str, JsonValue] | None, AfterValidator(small)] = Field(
        None, description="The profile's free fields, replaced as a whole; at most 16 KiB."
    )


class UserWithRolesResponse(BaseModel):
    """A user."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="The user's id.")
    email: str = Field(description="The e-mail address, in lower case.")
    is_active: bool = Field(description="Whether the user can log in.")
    roles: list[str] = Field(description="The names of the user's roles.")
    external_auth_provider: str | None = Field(description="Who vouches for the user, if not this server.")
    external_auth_id: str | None = Field(description="The user's id there.")
    custom_fields: dict[str, JsonValue] = Field(description="The profile's free fields.")
    last_login_at: datetime | None = Field(description="When the user last logged in.")
    created_at: datetime = Field(description="When the user was created.")
    updated_at: datetime = Field(description="When the user was last changed.")


_ROLES = func.array(
    select(RoleRow.name)
    .join(UserRoleRow, UserRoleRow.role_id == RoleRow.id)
    .where(UserRoleRow.user_id == UserRow.id)
    .order_by(RoleRow.name)
    .correlate(UserRow)
    .scalar_subquery(),
    type_=ARRAY(Text),
)
_SHOWN = select(*UserRow.__table__.c, _ROLES.label("roles"))
_COLUMNS = OwnedColumns((), UserRow.id)


@users_router.get("", summary="List users")
async def list_users(
    db: CurrentDb,
    caller: CurrentCaller,
    skip: Annotated[int, Query(ge=0, le=MAX_INT, description="How many to leave out.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 100,
    search: Annotated[str | None, Query(max_length=320, description="A part of the e-mail address.")] = None,
) -> list[UserWithRolesResponse]:
    """By e-mail address; without `sinas.users.read:all` only the caller himself."""
    caller.require("users", "read", caller.id)
    statement = _SHOWN.where(caller.visible("users", "read", _COLUMNS))
    if search:
        statement = statement.where(UserRow.email.icontains(search.replace("\x00", ""), autoescape=True))
    rows = await db.execute(statement.order_by(UserRow.email).offset(skip).limit(limit))
    return [UserWithRolesResponse.model_validate(row) for row in rows]


@users_router.post("", status_code=201, summary="Create a user")
async def create(body: CreateUserRequest, db: CurrentDb, caller: CurrentCaller) -> UserWithRolesResponse:
    """The user gets the roles of the e-mail's domain, or GuestUsers."""
    caller.require("users", "create", None)
    email = body.email.lower()
    new = upsert(UserRow).values(email=email).on_conflict_do_nothing(index_elements=["email"]).returning(UserRow.id)
    user_id = (await db.execute(new)).scalar_one_or_none()
    if user_id is None:
        raise AlreadyExistsError(f"User '{email}' already exists")
    await join_first_roles(db, user_id, email)
    await audit(db, caller, "create", ("user", email))
    return await _found(db, caller, user_id, "create")


@users_router.get("/{user_id}", summary="Get a user")
async def get(user_id: UserId, db: CurrentDb, caller: CurrentCaller) -> UserWithRolesResponse:
    """A user with the names of the roles."""
    return await _found(db, caller, user_id, "read")


@users_router.patch("/{user_id}", summary="Update a user")
async def change(user_id: UserId, body: UserUpdate, db: CurrentDb, caller: CurrentCaller) -> UserWithRolesResponse:
    """Everyone may change the own profile; (de)activating takes `sinas.users.update:all`."""
    user = await _found(db, caller, user_id, "update")
    values = body.model_dump(exclude_none=True)
    if body.is_active is not None:
        caller.require("users", "update", None)
    if not values:
        return user
    await db.execute(update(UserRow).where(UserRow.id == user_id).values(**values, updated_at=func.now()))
    if body.is_active is False:
        await _protect_administrators(db, caller, user_id)
        await end_of(db, user_id)
        await keep_an_administrator(db)
    await audit(db, caller, "update", ("user", user.email), values)
    return await _found(db, caller, user_id, "update")


@users_router.delete("/{user_id}", status_code=204, summary="Delete a user")
async def remove(
    user_id: UserId,
    db: CurrentDb,
    caller: CurrentCaller,
    runtime: Run,
    transfer_to: Annotated[
        UUID | None, Query(description="Who owns from now on what the user declared; needed if there is any (409).")
    ] = None,
) -> None:
    """Ends sessions and keys, deletes the user's chats, and erases names and contents from executions, at once."""
    user = await _found(db, caller, user_id, "delete")
    await _protect_administrators(db, caller, user_id)
    passed = await delete_user(db, runtime, caller, user_id, transfer_to)
    await keep_an_administrator(db)
    detail: dict[str, JsonValue] = {"id": str(user_id)}
    if transfer_to is not None:
        detail |= {"transfer_to": str(transfer_to), "transferred": passed}
    await audit(db, caller, "delete", ("user", user.email), detail)


async def _protect_administrators(db: Db, caller: Caller, user_id: UUID) -> None:
    if not caller.has(EVERYTHING) and await is_administrator(db, user_id):
        raise ForbiddenError("Not authorized: only an administrator can remove an administrator")


async def _found(db: Db, caller: Caller, user_id: UUID, action: str) -> UserWithRolesResponse:
    row = (await db.execute(_SHOWN.where(UserRow.id == user_id))).first()
    require_on(caller, "users", action, user_id if row else None, "User")
    if row is None:
        raise NotFoundError("User not found")
    return UserWithRolesResponse.model_validate(row)

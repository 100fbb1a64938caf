"""The routes of API keys. A key never holds more than its creator, and is shown once."""

from datetime import datetime
from typing import Annotated, TypeAlias
from uuid import UUID

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select, update

from sinas_server.identity.guard import require_all, require_on
from sinas_server.identity.resolve import INVALID
from sinas_server.identity.tables import ApiKeyRow, UserRow
from sinas_server.identity.tokens import new_api_key
from sinas_server.kernel.access import Caller, OwnedColumns, check_key
from sinas_server.kernel.errors import InvalidError, NotFoundError, UnauthorizedError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import Time, now
from sinas_server.kit.crypto import hash_token

api_keys_router = new_router("/api-keys", "api-keys")
KeyId: TypeAlias = Annotated[UUID, Path(description="The key's id.")]


class APIKeyCreate(BaseModel):
    """What a new API key shall be."""

    name: str = Field(min_length=1, max_length=255, description="What the key is for.")
    permissions: dict[str, bool] = Field(
        default={},
        max_length=1000,
        description="What the key may do, within what its creator may do at that moment: permission → true. "
        "Empty: nothing but `/auth/me`.",
    )
    expires_at: Time | None = Field(None, description="When it stops working; null: never.")


class APIKeyCreated(BaseModel):
    """A new API key, with the only copy of its plaintext."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="Its id.")
    name: str = Field(description="What the key is for.")
    key: str = Field(description="The key itself; it cannot be shown again.")
    key_prefix: str = Field(description="How it begins, to recognize it by.")
    permissions: dict[str, bool] = Field(description="What it may do.")
    expires_at: datetime | None = Field(description="When it stops working.")
    created_at: datetime = Field(description="When it was made.")


class APIKeyResponse(BaseModel):
    """An API key as lists show it."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="Its id.")
    user_id: UUID = Field(description="For whom it acts.")
    user_email: str | None = Field(description="The e-mail address of that user.")
    name: str = Field(description="What the key is for.")
    key_prefix: str = Field(description="How it begins, to recognize it by.")
    permissions: dict[str, bool] = Field(description="What it may do, as far as its user may.")
    is_active: bool = Field(description="False once it is revoked.")
    last_used_at: datetime | None = Field(description="When it was last used, give or take half a minute.")
    expires_at: datetime | None = Field(description="When it stops working.")
    created_at: datetime = Field(description="When it was made.")
    revoked_at: datetime | None = Field(description="When it was revoked.")


_SHOWN = select(*ApiKeyRow.__table__.c, UserRow.email.label("user_email")).join_from(ApiKeyRow, UserRow)
_COLUMNS = OwnedColumns((), ApiKeyRow.user_id)


@api_keys_router.post("", status_code=201, summary="Create an API key")
async def create(body: APIKeyCreate, db: CurrentDb, caller: CurrentCaller, runtime: Run) -> APIKeyCreated:
    """The answer holds the key in plain, once."""
    caller.require("api_keys", "create", caller.id)
    for key in body.permissions:
        check_key(key, ("body", "permissions", key))
    require_all(caller, (key for key, value in body.permissions.items() if value), "the key would hold")
    if body.expires_at is not None and body.expires_at <= now():
        raise InvalidError([(("body", "expires_at"), "must lie in the future")])
    plain, prefix = new_api_key()
    row = ApiKeyRow(
        user_id=caller.id,
        parent_id=caller.api_key,
        name=body.name,
        key_hash=hash_token(runtime.settings.signing_key, plain),
        key_prefix=prefix,
        permissions=body.permissions,
        expires_at=await _within_parent(db, caller, body.expires_at),
    )
    db.add(row)
    await db.flush()
    await db.refresh(row)
    await audit(db, caller, "create", ("api_key", row.name), {"id": str(row.id), "permissions": {**body.permissions}})
    return APIKeyCreated.model_validate({**_plain(row), "key": plain})


def _plain(row: ApiKeyRow) -> dict[str, object]:
    return {column.key: getattr(row, column.key) for column in ApiKeyRow.__table__.c}


async def _within_parent(db: Db, caller: Caller, expires_at: datetime | None) -> datetime | None:
    """The expiry asked for, but no later than that of the key which makes the new one."""
    if caller.api_key is None:
        return expires_at
    parent = select(ApiKeyRow.expires_at).where(ApiKeyRow.id == caller.api_key, ApiKeyRow.is_active)
    # Locked, so that whoever revokes it finds the new one.
    row = (await db.execute(parent.with_for_update(read=True))).one_or_none()
    if row is None:
        raise UnauthorizedError(INVALID)
    return min((at for at in (expires_at, row.expires_at) if at is not None), default=None)


@api_keys_router.get("", summary="List API keys")
async def list_keys(
    db: CurrentDb,
    caller: CurrentCaller,
    skip: Annotated[int, Query(ge=0, le=MAX_INT, description="How many to leave out.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 1000,
) -> list[APIKeyResponse]:
    """The caller's own keys, revoked ones included; everyone's with `sinas.api_keys.read:all`. Newest first."""
    caller.require("api_keys", "read", caller.id)
    statement = _SHOWN.where(caller.visible("api_keys", "read", _COLUMNS))
    statement = statement.order_by(ApiKeyRow.created_at.desc(), ApiKeyRow.id).offset(skip).limit(limit)
    return [APIKeyResponse.model_validate(row) for row in await db.execute(statement)]


@api_keys_router.get("/{key_id}", summary="Get an API key")
async def get(key_id: KeyId, db: CurrentDb, caller: CurrentCaller) -> APIKeyResponse:
    """The key without its secret part."""
    return await _found(db, caller, key_id, "read")


@api_keys_router.delete("/{key_id}", status_code=204, summary="Revoke an API key")
async def revoke(key_id: KeyId, db: CurrentDb, caller: CurrentCaller) -> None:
    """It stops working at once, together with the keys that were made with it."""
    key = await _found(db, caller, key_id, "delete")
    family = select(ApiKeyRow.id).where(ApiKeyRow.id == key_id).cte("family", recursive=True)
    family = family.union_all(select(ApiKeyRow.id).join(family, ApiKeyRow.parent_id == family.c.id))
    gone = (
        update(ApiKeyRow)
        .where(ApiKeyRow.id.in_(select(family.c.id)), ApiKeyRow.is_active)
        .values(is_active=False, revoked_at=func.now())
        .returning(ApiKeyRow.id)
        .execution_options(synchronize_session=False)
    )
    while (await db.execute(gone)).all():  # again: one may have been made while it waited for whoever made it
        pass
    await audit(db, caller, "revoke", ("api_key", key.name), {"id": str(key_id)})


async def _found(db: Db, caller: Caller, key_id: UUID, action: str) -> APIKeyResponse:
    row = (await db.execute(_SHOWN.where(ApiKeyRow.id == key_id))).first()
    if row is None:
        caller.require("api_keys", action, caller.id)
        raise NotFoundError("API key not found")
    require_on(caller, "api_keys", action, row.user_id, "API key")
    return APIKeyResponse.model_validate(row)

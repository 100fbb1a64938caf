"""Credentials become a `Caller`: one statement reads the user, the roles and every grant as they are now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Select,
    SQLColumnExpression,
    Text,
    Uuid,
    and_,
    bindparam,
    column,
    func,
    literal_column,
    null,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import aggregate_order_by

from sinas_server.identity.tables import (
    ApiKeyRow,
    ExecutionGrantRow,
    RefreshTokenRow,
    RolePermissionRow,
    RoleRow,
    UserRoleRow,
    UserRow,
)
from sinas_server.identity.tokens import KEY_START, SessionToken, read_token
from sinas_server.kernel.access import Caller, GrantSet, Via, grant_set
from sinas_server.kernel.errors import ForbiddenError, UnauthorizedError
from sinas_server.kernel.runtime import Credentials, Runtime
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import hash_token

INVALID = "Invalid or expired credentials"
Column: TypeAlias = SQLColumnExpression[object]

FUNCTION_BARRED = frozenset(
    {
        *("users", "roles", "permissions", "api_keys", "audit"),
        *("config", "packages", "dependencies"),
        *("secrets", "database_connections", "llm_providers", "budgets"),
        *("system", "workers", "containers", "queue", "request_logs"),
        *("tool_approvals", "pending_inputs"),
        "functions.shared_pool",
    }
)
"""What code of users cannot reach, whatever its caller may do: identity, secrets, the installation, approvals, and
making code that is trusted with more."""


@dataclass(frozen=True)
class Profile:
    """What a user sees about himself."""

    id: UUID
    email: str
    is_active: bool
    external_auth_provider: str | None
    external_auth_id: str | None
    custom_fields: dict[str, JsonValue]
    created_at: datetime
    last_login_at: datetime | None


@dataclass(frozen=True)
class Principal:
    """For whom work is done later: kept with queued work, and turned into a `Caller` when it runs."""

    user_id: UUID
    api_key_id: UUID | None = None
    owner_ids: tuple[UUID, ...] = ()
    depth: int = 0

    @classmethod
    def of(cls, caller: Caller) -> "Principal":
        """The caller as something that can be stored."""
        return cls(caller.id, caller.api_key, caller.owners, caller.depth)


def _grants() -> ColumnElement[Sequence[str]]:
    keys = (
        select(RolePermissionRow.permission_key)
        .join(UserRoleRow, UserRoleRow.role_id == RolePermissionRow.role_id)
        .where(UserRoleRow.user_id == UserRow.id, RolePermissionRow.permission_value)
        .correlate(UserRow)
    )
    return func.array(keys.scalar_subquery(), type_=ARRAY(Text))


def _roles() -> ColumnElement[Sequence[str]]:
    names = (
        select(RoleRow.name)
        .join(UserRoleRow, UserRoleRow.role_id == RoleRow.id)
        .where(UserRoleRow.user_id == UserRow.id)
        .order_by(RoleRow.name)
    )
    return func.array(names.correlate(UserRow).scalar_subquery(), type_=ARRAY(Text))


def _owner_grants(owner_ids: Column) -> ColumnElement[object]:
    """A JSON array with the grants of each owner, in order; an owner who is gone or inactive has none."""
    owner = (
        func.unnest(owner_ids).table_valued(column("id", Uuid), with_ordinality="place", name="owner").render_derived()
    )
    keys = (
        select(RolePermissionRow.permission_key)
        .join(UserRoleRow, UserRoleRow.role_id == RolePermissionRow.role_id)
        .join(UserRow, UserRow.id == UserRoleRow.user_id)
        .where(UserRow.id == owner.c.id, UserRow.is_active, RolePermissionRow.permission_value)
        .correlate(owner)
    )
    each = func.array(keys.scalar_subquery(), type_=ARRAY(Text))
    return (
        select(func.json_agg(aggregate_order_by(each, owner.c.place), type_=postgresql.JSON()))
        .select_from(owner)
        .scalar_subquery()
    )


def _statement(credential: Column, key_id: Column, owner_ids: Column | None = None) -> Select[*tuple[object, ...]]:
    """The columns that `_identified` reads, of active users only; the tables they come from are joined to it."""
    return select(
        UserRow.id,
        UserRow.email,
        UserRow.is_active,
        UserRow.external_auth_provider,
        UserRow.external_auth_id,
        UserRow.custom_fields,
        UserRow.created_at,
        UserRow.last_login_at,
        _roles().label("roles"),
        _grants().label("grants"),
        credential.label("credential"),
        key_id.label("key_id"),
        (null() if owner_ids is None else owner_ids).label("owner_ids"),
        (null() if owner_ids is None else _owner_grants(owner_ids)).label("owner_grants"),
    ).where(UserRow.is_active)


_KEY_IS_VALID = and_(ApiKeyRow.is_active, or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()))
_KEY_ID = bindparam("key_id", type_=Uuid)
_PERMISSIONS = ApiKeyRow.permissions.label("key_permissions")

BY_API_KEY = (
    _statement(ApiKeyRow.id, ApiKeyRow.id)
    .add_columns(_PERMISSIONS, literal_column("0").label("depth"))
    .join_from(ApiKeyRow, UserRow, UserRow.id == ApiKeyRow.user_id)
    .where(ApiKeyRow.key_hash == bindparam("hash"), _KEY_IS_VALID)
)
BY_SESSION = (
    _statement(RefreshTokenRow.id, null())
    .add_columns(null().label("key_permissions"), literal_column("0").label("depth"))
    .join_from(RefreshTokenRow, UserRow, UserRow.id == RefreshTokenRow.user_id)
    .where(
        RefreshTokenRow.id == bindparam("session_id"),
        RefreshTokenRow.user_id == bindparam("user_id"),
        RefreshTokenRow.revoked_at.is_(None),
        RefreshTokenRow.expires_at > func.now(),
    )
)
BY_EXECUTION = (
    _statement(ExecutionGrantRow.execution_id, ExecutionGrantRow.api_key_id, ExecutionGrantRow.owner_ids)
    .add_columns(_PERMISSIONS, ExecutionGrantRow.depth)
    .join_from(ExecutionGrantRow, UserRow, UserRow.id == ExecutionGrantRow.user_id)
    .outerjoin(ApiKeyRow, ApiKeyRow.id == ExecutionGrantRow.api_key_id)
    .where(
        ExecutionGrantRow.execution_id == bindparam("execution_id"),
        ExecutionGrantRow.token_id == bindparam("token_id"),
        ExecutionGrantRow.expires_at > func.now(),
        or_(ExecutionGrantRow.api_key_id.is_(None), _KEY_IS_VALID),
    )
)
BY_PRINCIPAL = (
    _statement(null(), _KEY_ID, bindparam("owner_ids", type_=ARRAY(Uuid)))
    .add_columns(_PERMISSIONS, bindparam("depth", type_=Integer).label("depth"))
    .join_from(UserRow, ApiKeyRow, and_(ApiKeyRow.id == _KEY_ID, ApiKeyRow.user_id == UserRow.id), isouter=True)
    .where(UserRow.id == bindparam("user_id"), or_(_KEY_ID.is_(None), _KEY_IS_VALID))
)


def rights_of(user_id: Column) -> ColumnElement[object]:
    """What `holder` reads of an active user, as one column of a larger statement; null if there is none."""
    told = func.json_build_array(UserRow.id, UserRow.email, _roles(), _grants(), type_=postgresql.JSON())
    return select(told).where(UserRow.id == user_id, UserRow.is_active).scalar_subquery()


def holder(rights: tuple[str, str, list[str], list[str]]) -> Caller:
    """Whose rights those are, for work of the platform."""
    user_id, email, roles, grants = rights
    return Caller(UUID(user_id), email, (grant_set(grants),), via="system", roles=tuple(roles))


@dataclass(frozen=True)
class Identified:
    """A caller, and what the same statement told about the user."""

    caller: Caller
    profile: Profile


async def identify(runtime: Runtime, credentials: Credentials) -> Identified:
    """Who brings these credentials. A bearer token decides alone; `X-API-Key` counts only where there is none.

    A bearer that is not valid is refused even beside a valid key: its client refreshes it and asks again, whereas
    going on as the key's user would silently turn one person into another. Raises `UnauthorizedError`.
    """
    token = credentials.bearer or credentials.api_key
    if token is None:
        raise UnauthorizedError
    if token.startswith(KEY_START):
        return await _by_api_key(runtime, token)
    said = read_token(runtime.settings.signing_key, token)
    if said is None:
        raise UnauthorizedError(INVALID)
    if isinstance(said, SessionToken):
        parameters = {"session_id": said.session_id, "user_id": said.user_id}
        return _identified(await runtime.database.lookup(BY_SESSION, parameters), "session")
    parameters = {"execution_id": said.execution_id, "token_id": said.token_id}
    return _identified(await runtime.database.lookup(BY_EXECUTION, parameters), "function")


async def authenticate(runtime: Runtime, credentials: Credentials) -> Caller:
    """Who is calling (`kernel.runtime.Authenticate`). Raises `UnauthorizedError`.

    A key that holds nothing is good for `/auth/me` only, which asks `identify`: anything else is a `ForbiddenError`.
    """
    caller = (await identify(runtime, credentials)).caller
    if caller.via == "api_key" and not caller.grants[-1].grants:
        raise ForbiddenError("Not authorized: this API key holds no permission")
    return caller


async def act_for(runtime: Runtime, principal: Principal, via: Via) -> Caller:
    """The caller that work acts for, with the rights of this moment. Raises `UnauthorizedError` if he has none left."""
    parameters = {
        "user_id": principal.user_id,
        "key_id": principal.api_key_id,
        "owner_ids": list(principal.owner_ids),
        "depth": principal.depth,
    }
    return _identified(await runtime.database.lookup(BY_PRINCIPAL, parameters), via).caller


async def _by_api_key(runtime: Runtime, key: str) -> Identified:
    rows = await runtime.database.lookup(BY_API_KEY, {"hash": hash_token(runtime.settings.signing_key, key)})
    identified = _identified(rows, "api_key")
    if identified.caller.api_key is not None:
        runtime.used_keys[identified.caller.api_key] = now()
    return identified


def granted(permissions: Mapping[str, bool]) -> GrantSet:
    """The grants of an API key."""
    return grant_set(key for key, value in permissions.items() if value is True)


class _Found(Protocol):
    """A row of the statements above."""

    id: UUID
    email: str
    is_active: bool
    external_auth_provider: str | None
    external_auth_id: str | None
    custom_fields: dict[str, JsonValue]
    created_at: datetime
    last_login_at: datetime | None
    roles: list[str]
    grants: list[str]
    credential: UUID | None
    key_id: UUID | None
    key_permissions: dict[str, bool]
    owner_ids: list[UUID] | None
    owner_grants: list[list[str]] | None
    depth: int


def _identified(rows: Sequence[_Found], via: Via) -> Identified:
    if not rows:
        raise UnauthorizedError(INVALID)
    row = rows[0]
    grants = [grant_set(row.grants)]
    if row.key_id is not None:
        grants.append(granted(row.key_permissions))
    owners = tuple(row.owner_ids or ())
    held = zip(owners, row.owner_grants or (), strict=True)
    caller = Caller(
        id=row.id,
        email=row.email,
        grants=tuple(grants),
        via=via,
        roles=tuple(row.roles),
        barred=FUNCTION_BARRED if via == "function" else frozenset(),
        credential=row.credential,
        api_key=row.key_id,
        owners=owners,
        lent=tuple((owner, grant_set(keys)) for owner, keys in held if owner != row.id),
        depth=row.depth,
    )
    profile = Profile(
        row.id,
        row.email,
        row.is_active,
        row.external_auth_provider,
        row.external_auth_id,
        row.custom_fields,
        row.created_at,
        row.last_login_at,
    )
    return Identified(caller, profile)

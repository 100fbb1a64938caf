"""Why a permission is held or not, and what someone may do something to: the routes that make decisions visible."""

from dataclasses import dataclass
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from sinas_server.identity.tables import RolePermissionRow, RoleRow, UserRoleRow, UserRow
from sinas_server.kernel.access import Caller, Permission, check_key, grant_set, parse
from sinas_server.kernel.errors import InvalidError, NotFoundError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.kind import AnyKind
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import COLUMNS, NAME_ONLY
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db

explain_router = new_router("", "access")
Source = Literal["role", "api_key", "inactive"]
STORED_ACTIONS = ("create", "read", "update", "delete")
"""Done to what is stored, active or not; everything else takes something active."""


class ExplainRequest(BaseModel):
    """Which decision to explain."""

    permission: str = Field(description="A permission key, of Sinas or of any application.")
    user_id: UUID | None = Field(
        None, description="Whose decision, by roles alone; another's takes `sinas.users.read:all`. Null: the caller's."
    )


class Decider(BaseModel):
    """What settled it."""

    source: Source = Field(
        description="`role`: the user's roles. `api_key`: the ceiling of the key that asks. `inactive`: the user is "
        "deactivated."
    )
    role: str | None = Field(description="The role whose grant allows it.")
    grant: str | None = Field(description="The grant that allows it, as the role holds it.")


class Missing(BaseModel):
    """Something that would have to be granted."""

    to: Literal["role", "api_key"] = Field(description="To a role of the user, or to the API key.")
    permission: str = Field(description="The permission, or a wider one.")


class RoleGrant(BaseModel):
    """A grant of a role."""

    role: str = Field(description="The role.")
    grant: str = Field(description="The permission it holds.")


class ExplainResponse(BaseModel):
    """A decision with its reason."""

    permission: str = Field(description="As asked.")
    user_id: UUID = Field(description="Whose decision it is.")
    user_email: str = Field(description="The user's e-mail address.")
    allowed: bool = Field(description="Whether the permission is held.")
    decided_by: Decider = Field(description="The role and grant, or the ceiling, behind the answer.")
    grants: list[RoleGrant] = Field(description="Every grant of the user's roles that covers the permission.")
    missing: list[Missing] = Field(description="All that would have to be granted; empty if nothing would help.")


@dataclass(frozen=True)
class Subject:
    """Whose rights are looked at, and from which role each comes."""

    caller: Caller
    held: tuple[tuple[str, str], ...]
    """Role and grant, by role."""


async def find_subject(db: Db, caller: Caller, user_id: UUID | None) -> Subject:
    """The caller with the credential in use, or another user by roles alone. Raises 403 without `users.read:all`."""
    other = user_id is not None and user_id != caller.id
    if other:
        caller.require("users", "read", None)
    query = (
        select(RoleRow.name, RolePermissionRow.permission_key)
        .join(RolePermissionRow, RolePermissionRow.role_id == RoleRow.id)
        .join(UserRoleRow, UserRoleRow.role_id == RoleRow.id)
        .where(UserRoleRow.user_id == (user_id or caller.id), RolePermissionRow.permission_value)
        .order_by(RoleRow.name, RolePermissionRow.permission_key)
    )
    held = tuple((name, key) for name, key in await db.execute(query))
    if not other:
        return Subject(caller, held)
    user = await db.get(UserRow, user_id)
    if user is None:
        raise NotFoundError("User not found")
    grants = (grant_set(key for _, key in held),) if user.is_active else ()
    return Subject(Caller(user.id, user.email, grants), held)


def explain(subject: Subject, permission: str) -> ExplainResponse:
    """The decision on a well-formed permission, by the rules every route uses."""
    wanted, caller = parse(permission), subject.caller
    grants = [RoleGrant(role=role, grant=key) for role, key in subject.held if _covers(key, wanted)]
    missing = [] if grants else [Missing(to="role", permission=permission)]
    if not all(ceiling.covers(wanted) for ceiling in caller.grants[1:]):
        missing.append(Missing(to="api_key", permission=permission))
    allowed = caller.holds(wanted) and not missing
    source: Source = missing[0].to if missing else "role"
    if not caller.grants:
        source, missing = "inactive", []
    first = grants[0] if allowed else None
    return ExplainResponse(
        permission=permission,
        user_id=caller.id,
        user_email=caller.email,
        allowed=allowed,
        decided_by=Decider(source=source, role=first and first.role, grant=first and first.grant),
        grants=grants,
        missing=missing,
    )


def _covers(key: str, wanted: Permission) -> bool:
    return grant_set([key]).covers(wanted)  # a malformed key covers nothing


@explain_router.post("/auth/explain", response_model=ExplainResponse, summary="Explain a decision on a permission")
async def explain_permission(body: ExplainRequest, db: CurrentDb, caller: CurrentCaller) -> ExplainResponse:
    """Which role and grant allow it, or what would have to be granted; for another user: what that user's roles say."""
    check_key(body.permission, ("body", "permission"))
    caller.require("roles", "read", caller.id)
    return explain(await find_subject(db, caller, body.user_id), body.permission)


class ObjectResponse(BaseModel):
    """Something that may be acted on."""

    id: UUID = Field(description="Its id.")
    namespace: str | None = Field(description="Its namespace; null where its kind has none.")
    name: str = Field(description="Its name.")


class ObjectsOf(BaseModel):
    """Which objects are asked for."""

    kind: str = Field(max_length=64, description="A kind of resource: `agent` or `agents`.")
    action: str = Field(max_length=64, description="What shall be done to them, like `chat`.")
    user_id: UUID | None = Field(None, description="For whom; another takes `sinas.users.read:all`.")
    skip: int = Field(0, ge=0, le=MAX_INT, description="How many to leave out.")
    limit: int = Field(100, ge=1, le=1000, description="How many at most.")


@explain_router.get("/auth/list-objects", response_model=list[ObjectResponse], summary="List what a permission reaches")
async def list_objects(
    db: CurrentDb,
    caller: CurrentCaller,
    runtime: Run,
    what: Annotated[ObjectsOf, Query()],
) -> Response:
    """By namespace and name: exactly what a check of each single one would allow."""
    kind = _kind(runtime, what.kind)
    if what.action not in kind.actions:
        raise InvalidError([(("query", "action"), f"must be one of {', '.join(kind.actions)}")])
    subject = await find_subject(db, caller, what.user_id)
    seen = subject.caller.visible(kind.plural, what.action, COLUMNS if kind.namespaced else NAME_ONLY)
    query = (
        select(ResourceRow.id, ResourceRow.namespace, ResourceRow.name)
        .where(ResourceRow.kind == kind.name, ResourceRow.deleted_at.is_(None), seen)
        .order_by(ResourceRow.namespace, ResourceRow.name, ResourceRow.id)
        .offset(what.skip)
        .limit(what.limit)
    )
    if what.action not in STORED_ACTIONS:
        query = query.where(ResourceRow.is_active)
    found = await db.execute(query)
    return JsonAnswer([{"id": row.id, "namespace": row.namespace or None, "name": row.name} for row in found])


def _kind(runtime: Runtime, name: str) -> AnyKind:
    for kind in runtime.kinds.values():
        if name in (kind.name, kind.plural):
            return kind
    raise InvalidError([(("query", "kind"), f"must be one of {', '.join(sorted(runtime.kinds))}")])

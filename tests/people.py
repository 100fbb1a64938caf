"""People for tests: a user of some roles with a session and an HTTP client that carries it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

import httpx2
from fastapi import FastAPI
from sqlalchemy import insert, literal, select
from sqlalchemy.types import ARRAY, DateTime, Integer, Uuid

from sinas_server.identity.execution_grants import grant_token, opening_grants
from sinas_server.identity.resolve import Principal
from sinas_server.identity.tables import ApiKeyRow, RefreshTokenRow, RoleRow, UserRoleRow, UserRow
from sinas_server.identity.tokens import ExecutionToken, SessionToken, mint_session_token, new_api_key
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import hash_token


def http_client(app: FastAPI, headers: dict[str, str] | None = None) -> httpx2.AsyncClient:
    """A client that calls the application in this process."""
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://sinas.test", headers=headers)


@dataclass(frozen=True)
class Person:
    """A user with a session. `http` sends the session's access token."""

    id: UUID
    email: str
    token: str
    http: httpx2.AsyncClient


async def make_person(runtime: Runtime, app: FastAPI, roles: Sequence[str], email: str | None = None) -> Person:
    """A new user in these roles, logged in."""
    address = email or f"someone-{uuid4().hex[:12]}@example.com"
    async with runtime.database.unit() as db:
        found = (await db.execute(select(UserRow.id).where(UserRow.email == address))).scalar_one_or_none()
        user_id = found or (await db.execute(insert(UserRow).values(email=address).returning(UserRow.id))).scalar_one()
        if not found:
            members = select(literal(user_id, Uuid), RoleRow.id).where(RoleRow.name.in_(roles))
            await db.execute(insert(UserRoleRow).from_select(["user_id", "role_id"], members))
        session = insert(RefreshTokenRow).values(
            user_id=user_id, token_hash=uuid4().hex, expires_at=now() + timedelta(hours=1)
        )
        session_id = (await db.execute(session.returning(RefreshTokenRow.id))).scalar_one()
    token = mint_session_token(runtime.settings.signing_key, SessionToken(user_id, session_id), 60)
    return Person(user_id, address, token, http_client(app, {"Authorization": f"Bearer {token}"}))


async def make_key(runtime: Runtime, user_id: UUID, *permissions: str) -> str:
    """An API key of a user, in plain."""
    key, prefix = new_api_key()
    async with runtime.database.unit() as db:
        await db.execute(
            insert(ApiKeyRow).values(
                user_id=user_id,
                name="test",
                key_hash=hash_token(runtime.settings.signing_key, key),
                key_prefix=prefix,
                permissions=dict.fromkeys(permissions, True),
            )
        )
    return key


async def execution_token(
    runtime: Runtime, principal: Principal, execution_id: UUID | None = None, seconds: float = 60
) -> str:
    """The token of a running execution; `principal.owner_ids` holds the owner of its function."""
    opened = execution_id or uuid4()
    chosen = select(
        literal(opened, Uuid),
        literal(principal.user_id, Uuid),
        literal(principal.api_key_id, Uuid),
        literal(list(principal.owner_ids), ARRAY(Uuid)),
        literal(principal.depth, Integer),
        literal(now() + timedelta(seconds=seconds), DateTime(timezone=True)),
    )
    [grant] = await runtime.database.rows(opening_grants(chosen))
    return grant_token(runtime, ExecutionToken(opened, grant.token_id), grant.expires_at)

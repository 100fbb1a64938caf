"""The token inside a function: its caller's rights within its owners', while the execution runs, and no identity."""

from uuid import UUID, uuid4

import httpx2
import jwt
import pytest
from fastapi import FastAPI
from sqlalchemy import Uuid, literal, select, update

from sinas_server.identity.execution_grants import closing_grants
from sinas_server.identity.resolve import FUNCTION_BARRED, Principal, act_for, authenticate
from sinas_server.identity.tables import ApiKeyRow, ExecutionGrantRow, UserRow
from sinas_server.kernel.errors import UnauthorizedError
from sinas_server.kernel.runtime import Credentials, Runtime
from sinas_server.kit.clock import now
from tests.people import Person, execution_token, make_key, make_person


async def status(client: httpx2.AsyncClient, token: str) -> int:
    return (await client.get("/auth/me", headers={"Authorization": f"Bearer {token}"})).status_code


async def test_the_token_acts_for_the_caller_within_the_owners_rights(
    runtime: Runtime, admin: Person, user: Person, guest: Person
) -> None:
    execution_id = uuid4()
    token = await execution_token(runtime, Principal(admin.id, None, (user.id,), 2), execution_id)
    caller = await authenticate(runtime, Credentials(bearer=token))
    assert (caller.id, caller.via, caller.credential, caller.depth) == (admin.id, "function", execution_id, 2)
    assert (caller.owners, caller.api_key) == ((user.id,), None)
    assert caller.barred == FUNCTION_BARRED
    assert caller.allows("functions", "execute", user.id, "a", "b"), "his own, and the caller may reach everybody's"
    assert not caller.allows("functions", "execute", admin.id, "a", "b"), "what is the caller's is not the owner's"
    both = await authenticate(
        runtime, Credentials(bearer=await execution_token(runtime, Principal(user.id, None, (user.id, admin.id))))
    )
    assert both.allows("functions", "execute", user.id, "a", "b"), "the administrator may reach everybody's"
    assert not both.allows("functions", "execute", admin.id, "a", "b"), "which the caller may not"
    assert caller.allows("functions", "execute", user.id, "a", "b"), "his own, and the caller may reach everybody's"
    assert not caller.allows("functions", "execute", admin.id, "a", "b"), "what is the caller's is not the owner's"
    both = await authenticate(
        runtime, Credentials(bearer=await execution_token(runtime, Principal(user.id, None, (user.id, admin.id))))
    )
    assert both.allows("functions", "execute", user.id, "a", "b"), "the administrator may reach everybody's"
    assert not both.allows("functions", "execute", admin.id, "a", "b"), "which the caller may not"
    by_guest = await authenticate(
        runtime, Credentials(bearer=await execution_token(runtime, Principal(admin.id, None, (user.id, guest.id))))
    )
    assert not by_guest.allows("functions", "execute", user.id, "a", "b"), "one of the owners may not"


async def test_identity_and_secrets_are_out_of_reach(
    runtime: Runtime, admin: Person, client: httpx2.AsyncClient
) -> None:
    token = await execution_token(runtime, Principal(admin.id, None, (admin.id,)))
    client.headers["Authorization"] = f"Bearer {token}"
    assert (await client.get("/auth/me")).json()["email"] == admin.email
    for method, path in [
        ("GET", "/api/v1/users"), ("POST", "/api/v1/users"), ("GET", "/api/v1/roles"), ("GET", "/api/v1/api-keys"),
        ("POST", "/api/v1/api-keys"), ("GET", "/api/v1/permissions/reference"),
        ("POST", "/api/v1/roles/Admins/members"), ("DELETE", f"/api/v1/users/{admin.id}"),
    ]:  # fmt: skip
        body = {"email": "a@example.com", "name": "x", "user_id": str(admin.id)} if method == "POST" else None
        assert (await client.request(method, path, json=body)).status_code == 403, (method, path)
    asked = ["sinas.users.read:own", "sinas.secrets/x.read:own", "sinas.*:own", "sinas.config.apply:all"]
    checks = (await client.post("/auth/check-permissions", json={"permissions": asked})).json()["checks"]
    assert [check["has_permission"] for check in checks] == [False] * 4


async def test_the_token_dies_with_the_execution(runtime: Runtime, user: Person, client: httpx2.AsyncClient) -> None:
    execution_id = uuid4()
    token = await execution_token(runtime, Principal(user.id, None, (user.id,)), execution_id)
    assert await status(client, token) == 200
    async with runtime.database.unit() as db:
        await db.execute(closing_grants(select(literal(execution_id, Uuid))))
    assert await status(client, token) == 401


async def test_another_attempt_voids_the_earlier_token(
    runtime: Runtime, user: Person, client: httpx2.AsyncClient
) -> None:
    execution_id, principal = uuid4(), Principal(user.id, None, (user.id,))
    first = await execution_token(runtime, principal, execution_id)
    second = await execution_token(runtime, principal, execution_id)
    assert (await status(client, first), await status(client, second)) == (401, 200)


async def test_the_token_expires(runtime: Runtime, user: Person, client: httpx2.AsyncClient) -> None:
    principal = Principal(user.id, None, ())
    assert await status(client, await execution_token(runtime, principal, seconds=-1)) == 401
    token = await execution_token(runtime, principal)
    await runtime.database.rows(update(ExecutionGrantRow).values(expires_at=now()))
    assert await status(client, token) == 401, "the row decides too"


async def test_the_token_of_a_key_keeps_to_the_key(runtime: Runtime, user: Person, client: httpx2.AsyncClient) -> None:
    key = await make_key(runtime, user.id, "sinas.functions.read:own")
    started_by = await authenticate(runtime, Credentials(api_key=key))
    principal = Principal.of(started_by)
    assert principal == Principal(user.id, started_by.credential)
    token = await execution_token(runtime, principal)
    caller = await authenticate(runtime, Credentials(bearer=token))
    assert caller.api_key == started_by.credential
    assert caller.allows("functions", "read", user.id) and not caller.allows("functions", "execute", user.id)
    await runtime.database.rows(update(ApiKeyRow).where(ApiKeyRow.user_id == user.id).values(is_active=False))
    assert await status(client, token) == 401


async def test_deactivated_owners_and_callers_end_it(
    runtime: Runtime, user: Person, guest: Person, app: FastAPI, client: httpx2.AsyncClient
) -> None:
    owner = await make_person(runtime, app, ["Admins"])
    await owner.http.aclose()
    token = await execution_token(runtime, Principal(user.id, None, (owner.id,)))
    before = await authenticate(runtime, Credentials(bearer=token))
    assert before.allows("functions", "execute", user.id)
    await runtime.database.rows(update(UserRow).where(UserRow.id == owner.id).values(is_active=False))
    after = await authenticate(runtime, Credentials(bearer=token))
    assert not after.allows("functions", "execute", user.id)
    await runtime.database.rows(update(UserRow).where(UserRow.id == user.id).values(is_active=False))
    assert await status(client, token) == 401


@pytest.mark.parametrize("changed", [{"exe": str(UUID(int=1))}, {"jti": str(UUID(int=1))}, {"exe": None}, {"jti": "x"}])
async def test_another_executions_token_is_401(
    changed: dict[str, object], runtime: Runtime, user: Person, client: httpx2.AsyncClient
) -> None:
    token = await execution_token(runtime, Principal(user.id))
    claims = jwt.decode(token, options={"verify_signature": False})
    assert set(claims) == {"exe", "jti", "type", "iat", "exp"}
    forged = jwt.encode(claims | changed, runtime.settings.signing_key, algorithm="HS256")
    assert await status(client, forged) == 401


async def test_work_acts_for_its_principal_with_the_rights_of_now(
    runtime: Runtime, user: Person, guest: Person
) -> None:
    await make_key(runtime, user.id, "sinas.functions.read:own")
    key_id = (await runtime.database.rows(select(ApiKeyRow.id).where(ApiKeyRow.user_id == user.id)))[0].id
    plain = await act_for(runtime, Principal(user.id), "session")
    assert plain.allows("functions", "execute", user.id) and plain.barred == frozenset()
    limited = await act_for(runtime, Principal(user.id, key_id, (user.id,), 3), "function")
    assert not limited.allows("functions", "execute", user.id) and limited.allows("functions", "read", user.id)
    assert (limited.depth, limited.api_key, limited.owners) == (3, key_id, (user.id,))
    assert Principal.of(limited) == Principal(user.id, key_id, (user.id,), 3)
    for gone in (Principal(uuid4()), Principal(guest.id, key_id), Principal(user.id, uuid4())):
        with pytest.raises(UnauthorizedError):
            await act_for(runtime, gone, "session")
    await runtime.database.rows(update(ApiKeyRow).where(ApiKeyRow.id == key_id).values(is_active=False))
    with pytest.raises(UnauthorizedError):
        await act_for(runtime, Principal(user.id, key_id), "session")

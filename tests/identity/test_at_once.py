"""What several people do to one user at the same time: he logs in twice, is deleted, or gets another password."""

import asyncio
import dataclasses
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import delete, insert, select

from sinas_server.backends.oidc import OidcClient, OidcProvider
from sinas_server.identity import passwords
from sinas_server.identity.oidc import enter
from sinas_server.identity.tables import UserRow
from sinas_server.kernel.runtime import Runtime
from tests.identity.codes import Codes, ask, verify
from tests.identity.waiting import waits_or_ends
from tests.people import Person

ISSUER, ALICE = "https://id.example.com", "alice@example.com"


async def test_somebody_new_logs_in_twice_with_mailed_codes(
    client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime
) -> None:
    session_id = await ask(client, ALICE)
    code = await code_for(ALICE)
    async with runtime.database.unit() as db:  # the first login, just before its end
        await db.execute(insert(UserRow).values(email=ALICE))
        second = asyncio.create_task(verify(client, session_id, code))
        await waits_or_ends(runtime, second)
    answer = await second
    assert (answer.status_code, answer.json()["user"]["email"]) == (200, ALICE), answer.text


async def test_somebody_new_logs_in_twice_at_a_provider(runtime: Runtime) -> None:
    with_provider = dataclasses.replace(runtime, oidc=OidcProvider(OidcClient(ISSUER, "sinas", None, "openid email")))

    async def log_in() -> UUID:
        async with runtime.database.unit() as db:
            return await enter(db, with_provider, {"sub": "alice", "email": ALICE, "email_verified": True})

    values = {"email": ALICE, "external_auth_provider": ISSUER, "external_auth_id": "alice"}
    async with runtime.database.unit() as db:
        await db.execute(insert(UserRow).values(values))
        second = asyncio.create_task(log_in())
        await waits_or_ends(runtime, second)
    [row] = await runtime.database.rows(select(UserRow.id).where(UserRow.email == ALICE))
    assert await second == row.id


@pytest.mark.parametrize("overrides", [{"auth_mode": "password"}])
async def test_a_password_is_set_while_its_user_is_deleted(
    admin: Person, guest: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_hash = passwords.new_hash

    async def slowly(runtime: Runtime, password: str, field: str) -> str:
        assert (await admin.http.delete(f"/api/v1/users/{guest.id}")).status_code == 204
        return await new_hash(runtime, password, field)

    monkeypatch.setattr(passwords, "new_hash", slowly)
    answer = await admin.http.put(f"/api/v1/users/{guest.id}/password", json={"new_password": "correct horse battery"})
    assert answer.status_code == 409, answer.text
    assert answer.json()["detail"] == "something that this needs was deleted at the same time"


@pytest.mark.parametrize("overrides", [{"auth_mode": "password"}])
async def test_the_old_password_sets_no_new_one_once_it_was_replaced(
    admin: Person, user: Person, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever knows it cannot undo what an administrator did about that just now."""
    path, old, new = f"/api/v1/users/{user.id}/password", "correct horse battery", "another long secret"
    assert (await admin.http.put(path, json={"new_password": old})).status_code == 204
    answer = await client.post("/auth/login", json={"email": user.email, "password": old})
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    check = passwords.check

    async def slowly(runtime: Runtime, email: str, password: str) -> passwords.Checked:
        found = await check(runtime, email, password)
        assert (await admin.http.put(path, json={"new_password": new})).status_code == 204
        return found

    with monkeypatch.context() as patch:
        patch.setattr(passwords, "check", slowly)
        body = {"old_password": old, "new_password": "a third long secret"}
        answer = await client.post("/auth/password", json=body, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (400, passwords.WRONG_PASSWORD)
    assert (await client.post("/auth/login", json={"email": user.email, "password": new})).status_code == 200


async def test_somebody_joins_a_role_while_he_is_deleted(admin: Person, guest: Person, runtime: Runtime) -> None:
    async with runtime.database.unit() as db:
        await db.execute(delete(UserRow).where(UserRow.id == guest.id))
        joining = asyncio.create_task(admin.http.post("/api/v1/roles/Users/members", json={"user_id": str(guest.id)}))
        await waits_or_ends(runtime, joining)
    answer = await joining
    assert (answer.status_code, answer.json()["detail"]) == (404, "User not found")

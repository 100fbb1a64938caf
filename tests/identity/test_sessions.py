"""Sessions, as their user and administrators list and end them."""

from datetime import timedelta
from uuid import uuid4

import httpx2
from fastapi import FastAPI
from sqlalchemy import func, select, update

from sinas_server.identity.tables import RefreshTokenRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from tests.identity.codes import Codes, ask, verify
from tests.identity.conftest import KeyClient
from tests.people import Person, http_client

SESSIONS = "/auth/sessions"


def sessions_of(person: Person) -> str:
    return f"/api/v1/users/{person.id}/sessions"


async def log_in(client: httpx2.AsyncClient, code_for: Codes, email: str, agent: str = "a browser") -> dict[str, str]:
    session_id = await ask(client, email)
    body = {"session_id": session_id, "otp_code": await code_for(email)}
    answer = await client.post("/auth/verify-otp", json=body, headers={"User-Agent": agent})
    assert answer.status_code == 200, answer.text
    tokens: dict[str, str] = answer.json()
    return tokens


def as_bearer(tokens: dict[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def test_a_user_sees_where_he_is_logged_in(user: Person, client: httpx2.AsyncClient, code_for: Codes) -> None:
    await log_in(client, code_for, user.email, "x" * 600)
    listed = (await user.http.get(SESSIONS)).json()
    assert [entry["is_current"] for entry in listed] == [False, True], "newest first"
    assert listed[0]["user_agent"] == "x" * 512
    assert listed[0]["ip"] == "127.0.0.1"
    assert set(listed[0]) == {"id", "created_at", "last_used_at", "expires_at", "ip", "user_agent", "is_current"}


async def test_a_refresh_is_a_use(user: Person, client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime) -> None:
    tokens = await log_in(client, code_for, user.email)
    long_ago = func.now() - timedelta(days=2)
    await runtime.database.rows(update(RefreshTokenRow).values(last_used_at=long_ago, created_at=long_ago))
    await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    listed = (await user.http.get(SESSIONS, headers=as_bearer(tokens))).json()
    mine = next(entry for entry in listed if entry["is_current"])
    other = next(entry for entry in listed if not entry["is_current"])
    assert mine["last_used_at"] > mine["created_at"]
    assert other["last_used_at"] == other["created_at"]


async def test_ending_a_session_stops_its_tokens_at_once(
    user: Person, client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime
) -> None:
    tokens = await log_in(client, code_for, user.email)
    other = next(entry["id"] for entry in (await user.http.get(SESSIONS)).json() if not entry["is_current"])
    assert (await user.http.delete(f"{SESSIONS}/{other}")).status_code == 204
    assert (await client.get("/auth/me", headers=as_bearer(tokens))).status_code == 401
    assert (await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).status_code == 401
    assert (await user.http.delete(f"{SESSIONS}/{other}")).status_code == 404
    assert len((await user.http.get(SESSIONS)).json()) == 1
    [entry] = await runtime.database.rows(select(AuditRow).where(AuditRow.target_kind == "session"))
    assert (entry.action, entry.target, entry.actor) == ("end", other, user.email)


async def test_ended_and_expired_sessions_are_not_listed_and_worth_nothing(user: Person, runtime: Runtime) -> None:
    await runtime.database.rows(
        update(RefreshTokenRow)
        .where(RefreshTokenRow.user_id == user.id)
        .values(expires_at=func.now() - timedelta(seconds=1))
    )
    assert (await user.http.get("/auth/me")).status_code == 401, "an access token does not outlive its session"


async def test_nobody_sees_or_ends_the_sessions_of_others(user: Person, guest: Person, admin: Person) -> None:
    [mine] = (await guest.http.get(SESSIONS)).json()
    assert (await user.http.delete(f"{SESSIONS}/{mine['id']}")).status_code == 404
    assert (await user.http.get(sessions_of(guest))).status_code == 404
    assert (await user.http.delete(sessions_of(guest))).status_code == 404
    assert (await user.http.delete(f"{sessions_of(guest)}/{mine['id']}")).status_code == 404
    assert (await user.http.get(f"/api/v1/users/{uuid4()}/sessions")).status_code == 404
    assert (await admin.http.get(f"/api/v1/users/{uuid4()}/sessions")).status_code == 404
    assert (await admin.http.delete(f"{sessions_of(user)}/{mine['id']}")).status_code == 404, "of another user"
    assert len((await guest.http.get(sessions_of(guest))).json()) == 1, "the own ones are there too"


async def test_an_administrator_ends_sessions(
    admin: Person, user: Person, with_key: KeyClient, client: httpx2.AsyncClient, code_for: Codes, runtime: Runtime
) -> None:
    first, _ = await log_in(client, code_for, user.email), await log_in(client, code_for, user.email)
    key = await with_key(user)
    listed = (await admin.http.get(sessions_of(user))).json()
    assert len(listed) == 3
    assert not any(entry["is_current"] for entry in listed)
    assert (await admin.http.delete(f"{sessions_of(user)}/{listed[-1]['id']}")).status_code == 204
    assert (await user.http.get("/auth/me")).status_code == 401
    assert (await client.get("/auth/me", headers=as_bearer(first))).status_code == 200
    assert (await admin.http.delete(sessions_of(user))).status_code == 204
    assert (await client.get("/auth/me", headers=as_bearer(first))).status_code == 401
    assert (await admin.http.get(sessions_of(user))).json() == []
    assert (await key.get("/auth/me")).status_code == 200, "keys go on"
    [entry] = await runtime.database.rows(select(AuditRow).where(AuditRow.action == "end_sessions"))
    assert (entry.target, entry.detail) == (user.email, {"count": 2})


async def test_reading_about_users_is_not_enough(admin: Person, user: Person, with_key: KeyClient) -> None:
    reader = await with_key(admin, "sinas.users.read:all")
    assert (await reader.get(sessions_of(user))).status_code == 403
    assert (await reader.delete(sessions_of(user))).status_code == 403
    assert (await reader.get(SESSIONS)).status_code == 200


async def test_a_key_without_rights_knows_no_sessions(user: Person, with_key: KeyClient, app: FastAPI) -> None:
    key = await with_key(user)
    assert (await key.get(SESSIONS)).status_code == 403
    assert (await key.delete(f"{SESSIONS}/{uuid4()}")).status_code == 403
    async with http_client(app) as nobody:
        assert (await nobody.get(SESSIONS)).status_code == 401
        assert (await nobody.get(sessions_of(user))).status_code == 401


async def test_a_deactivated_user_finds_no_old_session_when_activated_again(
    admin: Person, user: Person, client: httpx2.AsyncClient, code_for: Codes
) -> None:
    tokens = await log_in(client, code_for, user.email)
    for active in (False, True):
        await admin.http.patch(f"/api/v1/users/{user.id}", json={"is_active": active})
    assert (await client.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).status_code == 401
    assert (await admin.http.get(sessions_of(user))).json() == []


async def test_the_wrong_door_for_a_session_is_422(user: Person, client: httpx2.AsyncClient) -> None:
    assert (await user.http.delete(f"{SESSIONS}/nonsense")).status_code == 422
    assert (await verify(client, str(uuid4()), "123456")).status_code == 400

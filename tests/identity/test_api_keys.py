"""API keys: shown once, stored hashed, never more than their creator, gone at once."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import httpx2
import pytest
from pydantic import JsonValue
from sqlalchemy import select, update

from sinas_server.identity import api_keys
from sinas_server.identity.key_uses import write_key_uses
from sinas_server.identity.tables import ApiKeyRow, UserRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from tests.identity.conftest import KeyClient
from tests.identity.waiting import waits_or_ends
from tests.people import Person, make_key

KEYS = "/api/v1/api-keys"
Json = dict[str, JsonValue]


async def test_a_key_is_shown_once_and_stored_hashed(
    user: Person, client: httpx2.AsyncClient, runtime: Runtime
) -> None:
    made = await user.http.post(KEYS, json={"name": "ci", "permissions": {"sinas.api_keys.read:own": True}})
    assert made.status_code == 201
    body = made.json()
    assert set(body) == {"id", "name", "key", "key_prefix", "permissions", "expires_at", "created_at"}
    assert body["key"].startswith(body["key_prefix"]) and len(body["key"]) > len(body["key_prefix"]) + 30
    rows = await runtime.database.rows(select(*ApiKeyRow.__table__.c).where(ApiKeyRow.id == UUID(body["id"])))
    assert body["key"] not in str(rows)
    listed = (await client.get(KEYS, headers={"X-API-Key": body["key"]})).json()
    assert [(item["id"], item["user_email"], item["is_active"]) for item in listed] == [(body["id"], user.email, True)]
    assert "key" not in listed[0] and "key_hash" not in listed[0]
    one = (await user.http.get(f"{KEYS}/{body['id']}")).json()
    assert one == listed[0] | {"last_used_at": one["last_used_at"]}
    entries = await runtime.database.rows(select(AuditRow.action, AuditRow.target).where(AuditRow.target == "ci"))
    assert [tuple(entry) for entry in entries] == [("create", "ci")]


@pytest.mark.parametrize("permissions", [{}, {"sinas.api_keys.create:own": False}])
async def test_a_key_without_permissions_can_do_nothing_but_look_at_itself(
    permissions: dict[str, bool], user: Person, client: httpx2.AsyncClient
) -> None:
    key = (await user.http.post(KEYS, json={"name": "none", "permissions": permissions})).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    assert (await client.get("/auth/me", headers=headers)).json()["email"] == user.email
    for method, path in [
        ("GET", KEYS), ("POST", KEYS), ("GET", f"{KEYS}/{uuid4()}"), ("DELETE", f"{KEYS}/{uuid4()}"),
        ("GET", "/api/v1/users"), ("GET", f"/api/v1/users/{user.id}"), ("PATCH", f"/api/v1/users/{user.id}"),
        ("GET", "/api/v1/roles"), ("GET", "/api/v1/roles/Users"), ("GET", "/api/v1/permissions/reference"),
        ("GET", "/api/v1/roles/permissions/defaults"), ("DELETE", f"/api/v1/users/{user.id}"),
        ("GET", "/api/v1/functions"), ("GET", "/agents"), ("GET", "/auth/list-objects?kind=agent&action=chat"),
    ]:  # fmt: skip
        answer = await client.request(method, path, headers=headers, json={"name": "x"} if method != "GET" else None)
        assert answer.status_code == 403, (method, path)
    check = {"permissions": ["sinas.api_keys.create:own", "sinas.users.read:own"], "logic": "OR"}
    assert (await client.post("/auth/check-permissions", headers=headers, json=check)).status_code == 403


async def test_a_key_cannot_hold_more_than_its_creator(user: Person, with_key: KeyClient) -> None:
    for wanted in ("sinas.users.read:all", "sinas.*:own", "sinas.api_keys.*:own", "titan.x.read:own"):
        refused = await user.http.post(KEYS, json={"name": "more", "permissions": {wanted: True}})
        assert refused.status_code == 403
        assert wanted in refused.json()["detail"]
    small = await with_key(user, "sinas.api_keys.create:own", "sinas.users.read:own")
    within = await small.post(KEYS, json={"name": "child", "permissions": {"sinas.users.read:own": True}})
    assert within.status_code == 201
    beyond = await small.post(KEYS, json={"name": "child", "permissions": {"sinas.users.update:own": True}})
    assert beyond.status_code == 403, "its user holds this, the key does not"
    assert "sinas.users.update:own" in beyond.json()["detail"]


async def test_a_key_loses_what_its_user_loses(user: Person, admin: Person, with_key: KeyClient) -> None:
    client = await with_key(user, "sinas.users.read:own")
    assert (await client.get("/api/v1/users")).status_code == 200
    assert (await admin.http.delete(f"/api/v1/roles/Users/members/{user.id}")).status_code == 204
    assert (await client.get("/api/v1/users")).status_code == 403


async def test_revoking_takes_effect_at_once_with_what_was_made_from_the_key(
    user: Person, runtime: Runtime, client: httpx2.AsyncClient
) -> None:
    parent = await make_key(runtime, user.id, "sinas.api_keys.create:own", "sinas.api_keys.read:own")
    child = (await client.post(KEYS, headers={"X-API-Key": parent}, json={"name": "child"})).json()
    parent_id = next(key["id"] for key in (await user.http.get(KEYS)).json() if key["name"] == "test")
    assert (await user.http.delete(f"{KEYS}/{parent_id}")).status_code == 204
    for key in (parent, child["key"]):
        assert (await client.get("/auth/me", headers={"X-API-Key": key})).status_code == 401
    kept = (await user.http.get(f"{KEYS}/{parent_id}")).json()
    assert kept["is_active"] is False and kept["revoked_at"]
    assert (await user.http.delete(f"{KEYS}/{parent_id}")).status_code == 204, "revoking again is no error"


async def test_a_key_that_is_being_made_with_one_that_is_being_revoked_is_revoked_too(
    user: Person, runtime: Runtime, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_made, goes_on = asyncio.Event(), asyncio.Event()

    async def slowly(db: Db, caller: Caller, action: str, target: tuple[str, str], detail: Json | None = None) -> None:
        if action == "create":
            is_made.set()
            await goes_on.wait()
        await audit(db, caller, action, target, detail)

    monkeypatch.setattr(api_keys, "audit", slowly)
    parent = await make_key(runtime, user.id, "sinas.api_keys.create:own")
    [shown] = (await user.http.get(KEYS)).json()
    making = asyncio.create_task(client.post(KEYS, headers={"X-API-Key": parent}, json={"name": "child"}))
    await is_made.wait()
    revoking = asyncio.create_task(user.http.delete(f"{KEYS}/{shown['id']}"))
    await waits_or_ends(runtime, revoking)
    goes_on.set()
    assert (await revoking).status_code == 204
    child = (await making).json()["key"]
    assert (await client.get("/auth/me", headers={"X-API-Key": child})).status_code == 401


async def test_a_child_does_not_outlive_its_parent(user: Person, client: httpx2.AsyncClient) -> None:
    soon = (now() + timedelta(hours=1)).isoformat()
    body = {"name": "parent", "permissions": {"sinas.api_keys.create:own": True}, "expires_at": soon}
    parent = (await user.http.post(KEYS, json=body)).json()
    for asked in (None, (now() + timedelta(days=1)).isoformat()):
        child = await client.post(KEYS, headers={"X-API-Key": parent["key"]}, json={"name": "c", "expires_at": asked})
        assert child.json()["expires_at"] == parent["expires_at"]
    sooner = (now() + timedelta(minutes=5)).replace(tzinfo=None).isoformat()
    child = await client.post(KEYS, headers={"X-API-Key": parent["key"]}, json={"name": "c", "expires_at": sooner})
    assert child.json()["expires_at"].startswith(sooner[:19]), "a time without a zone is meant in UTC"


async def test_expired_and_inactive_keys_are_401(user: Person, runtime: Runtime, client: httpx2.AsyncClient) -> None:
    for change in ({"expires_at": now() - timedelta(seconds=1)}, {"is_active": False}):
        key = await make_key(runtime, user.id)
        assert (await client.get("/auth/me", headers={"X-API-Key": key})).status_code == 200
        await runtime.database.rows(update(ApiKeyRow).where(ApiKeyRow.user_id == user.id).values(change))
        assert (await client.get("/auth/me", headers={"X-API-Key": key})).status_code == 401
    key = await make_key(runtime, user.id)
    await runtime.database.rows(update(UserRow).where(UserRow.id == user.id).values(is_active=False))
    assert (await client.get("/auth/me", headers={"X-API-Key": key})).status_code == 401
    assert (await user.http.get("/auth/me")).status_code == 401


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "x", "permissions": {"nonsense": True}}, "nonsense"),
        ({"name": "x", "permissions": {"sinas.a.read:own": "perhaps"}}, "sinas.a.read:own"),
        ({"name": "x", "permissions": ["sinas.a.read:own"]}, "permissions"),
        ({"name": "x", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "expires_at": "soon"}, "expires_at"),
        ({"name": "x", "expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
    ],
)
async def test_bad_keys_are_422_with_the_place(body: dict[str, object], where: str, user: Person) -> None:
    answer = await user.http.post(KEYS, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][-1] == where


async def test_another_users_key_is_not_there(user: Person, admin: Person, runtime: Runtime) -> None:
    await make_key(runtime, admin.id, "sinas.*:all")
    listed = (await admin.http.get(KEYS)).json()
    theirs = next(key["id"] for key in listed if key["user_id"] == str(admin.id))
    assert (await user.http.get(f"{KEYS}/{theirs}")).status_code == 404
    assert (await user.http.delete(f"{KEYS}/{theirs}")).status_code == 404
    assert (await user.http.get(f"{KEYS}/{uuid4()}")).status_code == 404
    assert (await user.http.get(f"{KEYS}/7")).status_code in (404, 422)
    assert (await user.http.get(KEYS)).json() == []
    await make_key(runtime, user.id)
    mine = (await user.http.get(KEYS)).json()[0]["id"]
    assert (await admin.http.get(f"{KEYS}/{mine}")).json()["user_email"] == user.email
    assert (await admin.http.delete(f"{KEYS}/{mine}")).status_code == 204


async def test_last_use_is_written_in_batches(user: Person, runtime: Runtime, client: httpx2.AsyncClient) -> None:
    key = await make_key(runtime, user.id)
    await write_key_uses(runtime)
    await client.get("/auth/me", headers={"X-API-Key": key})
    key_id = (await user.http.get(KEYS)).json()[0]["id"]
    assert (await user.http.get(f"{KEYS}/{key_id}")).json()["last_used_at"] is None, "no write per request"
    await write_key_uses(runtime)
    first = (await user.http.get(f"{KEYS}/{key_id}")).json()["last_used_at"]
    assert first is not None and runtime.used_keys == {}
    runtime.used_keys[UUID(key_id)] = now() - timedelta(hours=1)
    await write_key_uses(runtime)
    assert (await user.http.get(f"{KEYS}/{key_id}")).json()["last_used_at"] == first, "never goes back"

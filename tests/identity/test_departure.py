"""Deleting a user: what he declared passes on or holds him back, his data go, and nobody gains rights by it."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, select, text

from sinas_server.chats.tables import ChatRow
from sinas_server.functions.tables import ExecutionRow
from sinas_server.identity.tables import UserRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow, ResourceRow
from tests.identity.conftest import KeyClient
from tests.people import Person, make_person

CODE = "def handler(input_data, context):\n    return input_data\n"


async def declared(person: Person, name: str = "f") -> str:
    made = await person.http.post("/api/v1/functions", json={"name": name, "code": CODE})
    assert made.status_code == 201, made.text
    return f"/api/v1/functions/default/{name}"


async def leave(http: httpx2.AsyncClient, person: Person, heir: object = None) -> httpx2.Response:
    params = {} if heir is None else {"transfer_to": str(heir)}
    return await http.delete(f"/api/v1/users/{person.id}", params=params)


async def test_an_owner_is_not_deleted_without_an_heir(admin: Person, user: Person) -> None:
    for number in range(12):
        await declared(user, f"f{number:02}")
    refused = await leave(admin.http, user)
    assert refused.status_code == 409
    assert "function default/f00" in refused.json()["detail"]
    assert "transfer_to" in refused.json()["detail"]
    assert "default/f10" not in refused.json()["detail"]
    assert "and more" in refused.json()["detail"]
    assert (await user.http.get("/auth/me")).status_code == 200


async def test_what_was_deleted_holds_nobody_back(admin: Person, user: Person) -> None:
    assert (await user.http.delete(await declared(user))).status_code == 204
    assert (await leave(admin.http, user)).status_code == 204


async def test_the_heir_owns_everything(admin: Person, user: Person, runtime: Runtime, app: FastAPI) -> None:
    heir = await make_person(runtime, app, ["Users"])
    async with heir.http:
        kept, gone = await declared(user, "kept"), await declared(user, "gone")
        assert (await user.http.delete(gone)).status_code == 204
        assert (await heir.http.get(kept)).status_code == 403
        assert (await leave(admin.http, user, heir.id)).status_code == 204
        assert (await heir.http.get(kept)).json()["user_id"] == str(heir.id)
        assert (await heir.http.put(kept, json={"description": "mine"})).status_code == 200
        assert (await heir.http.post(f"{gone}/undelete")).status_code == 200
    assert (await user.http.get("/auth/me")).status_code == 401
    rows = await runtime.database.rows(select(AuditRow.detail).where(AuditRow.action == "delete"))
    assert {"id": str(user.id), "transfer_to": str(heir.id), "transferred": 2} in [row.detail for row in rows]


async def test_who_can_be_heir(admin: Person, user: Person, guest: Person) -> None:
    await declared(user)
    for nobody in (user.id, uuid4(), "x"):
        refused = await leave(admin.http, user, nobody)
        assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["query", "transfer_to"])
    await admin.http.patch(f"/api/v1/users/{guest.id}", json={"is_active": False})
    assert (await leave(admin.http, user, guest.id)).status_code == 422


async def test_nobody_gives_code_more_rights_than_he_holds(admin: Person, user: Person, with_key: KeyClient) -> None:
    """What is declared acts with its owner's rights."""
    await declared(user)
    http = await with_key(admin, "sinas.users.*:all")
    other = await admin.http.post("/api/v1/users", json={"email": "heir@example.com"})
    body = {"user_id": other.json()["id"]}
    assert (await admin.http.post("/api/v1/roles/Users/members", json=body)).status_code == 200
    refused = await leave(http, user, body["user_id"])
    assert refused.status_code == 403
    assert "the new owner holds" in refused.json()["detail"]
    assert (await leave(http, user, admin.id)).status_code == 204, "to himself he may"


async def test_names_per_user_may_collide(admin: Person, user: Person, runtime: Runtime) -> None:
    def mine(owner: Person) -> dict[str, Any]:
        return {"kind": "note", "scope": str(owner.id), "name": "n", "owner_id": owner.id, "spec": {}, "checksum": ""}

    await runtime.database.rows(insert(ResourceRow).values([mine(user), mine(admin)]))
    refused = await leave(admin.http, user, admin.id)
    assert (refused.status_code, "same kind and name" in refused.json()["detail"]) == (409, True)
    await runtime.database.rows(text("DELETE FROM resources WHERE scope = :scope").bindparams(scope=str(admin.id)))
    assert (await leave(admin.http, user, admin.id)).status_code == 204
    rows = await runtime.database.rows(select(ResourceRow.scope, ResourceRow.owner_id))
    assert [tuple(row) for row in rows] == [(str(admin.id), admin.id)]


async def test_chats_go_and_executions_lose_their_contents(admin: Person, user: Person, runtime: Runtime) -> None:
    assert (await admin.http.post("/api/v1/agents", json={"name": "a"})).status_code == 201
    assert (await user.http.post("/agents/default/a/chats", json={"title": "private"})).status_code == 200
    assert (await admin.http.post("/agents/default/a/chats", json={})).status_code == 200
    await declared(user)
    asked = {"input": {"card": "4711"}, "delay_seconds": 3600}
    queued = await user.http.post("/functions/default/f/execute/async", json=asked)
    assert queued.status_code == 202
    assert (await leave(admin.http, user, admin.id)).status_code == 204
    assert [row.user_id for row in await runtime.database.rows(select(ChatRow.user_id))] == [admin.id]
    row = (await runtime.database.rows(select(*ExecutionRow.__table__.c)))[0]
    assert (row.status, row.user_email, row.input_data, row.output_data) == ("CANCELLED", "", {}, None)
    assert (row.namespace, row.name) == ("default", "f"), "that it ran is kept"
    assert not await runtime.database.rows(select(UserRow.id).where(UserRow.email == user.email))


@pytest.mark.parametrize("size", [16_000, 17_000])
async def test_a_guest_writes_a_profile_of_bounded_size(guest: Person, size: int) -> None:
    changed = await guest.http.patch(f"/api/v1/users/{guest.id}", json={"custom_fields": {"about": "x" * size}})
    assert changed.status_code == (200 if size < 16_384 else 422)
    shown = (await guest.http.get("/auth/me")).json()["custom_fields"]
    assert shown == ({"about": "x" * size} if size < 16_384 else {})

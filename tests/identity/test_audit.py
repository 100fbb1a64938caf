"""The audit log: every change of rights is in it, nobody edits it, and it can be read and exported."""

import json
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import Delete, Update, delete, insert, text, update
from sqlalchemy.exc import DBAPIError

from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from sinas_server.kit.clock import now
from tests.people import Person

AUDIT = "/api/v1/audit"


async def entries(http: httpx2.AsyncClient, **query: str | int) -> list[dict[str, Any]]:
    answer = await http.get(AUDIT, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


async def done(http: httpx2.AsyncClient, method: str, url: str, body: object = None) -> dict[str, Any]:
    answer = await http.request(method, f"/api/v1{url}", json=body)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found


async def test_every_change_of_rights_is_an_entry(admin: Person) -> None:
    http = admin.http
    someone = await done(http, "POST", "/users", {"email": "new@example.com"})
    await done(http, "PATCH", f"/users/{someone['id']}", {"custom_fields": {"a": 1}})
    await done(http, "POST", "/roles", {"name": "R"})
    await done(http, "PATCH", "/roles/R", {"description": "d"})
    await done(http, "POST", "/roles/R/members", {"user_id": someone["id"]})
    await done(http, "POST", "/roles/R/permissions", {"permission_key": "a.b:own", "permission_value": True})
    await done(http, "DELETE", "/roles/R/permissions?permission_key=a.b:own")
    await done(http, "DELETE", f"/roles/R/members/{someone['id']}")
    await done(http, "DELETE", "/roles/R")
    key = await done(http, "POST", "/api-keys", {"name": "K"})
    await done(http, "DELETE", f"/api-keys/{key['id']}")
    document = "apiVersion: sinas.co/v1\nkind: SinasConfig\nmetadata: {name: c}\nspec: {}\n"
    assert (await done(http, "POST", "/config/apply", {"config": document}))["success"]
    await done(http, "DELETE", f"/users/{someone['id']}")
    seen = await entries(http, actor=admin.email)
    assert [(entry["action"], entry["target_kind"], entry["target"]) for entry in reversed(seen)] == [
        ("create", "user", "new@example.com"),
        ("update", "user", "new@example.com"),
        ("create", "role", "R"),
        ("update", "role", "R"),
        ("add_member", "role", "R"),
        ("set_permission", "role", "R"),
        ("remove_permission", "role", "R"),
        ("remove_member", "role", "R"),
        ("delete", "role", "R"),
        ("create", "api_key", "K"),
        ("revoke", "api_key", "K"),
        ("config.apply", "config", "c"),
        ("delete", "user", "new@example.com"),
    ]
    assert {(entry["actor_id"], entry["via"]) for entry in seen} == {(str(admin.id), "session")}
    assert key["key"] not in json.dumps(seen)


async def test_what_holds_secrets_is_audited_without_them(admin: Person) -> None:
    at = "/llm-providers"
    await done(admin.http, "POST", at, {"name": "p", "provider_type": "openai", "api_key": "sk-hidden"})
    await done(admin.http, "PATCH", f"{at}/p", {"api_key": "sk-hidden-2"})
    await done(admin.http, "DELETE", f"{at}/p")
    seen = await entries(admin.http, target_kind="llm_provider", target="p")
    assert [entry["action"] for entry in seen] == ["delete", "update", "create"]
    assert "hidden" not in json.dumps(seen)


async def test_filters(admin: Person, runtime: Runtime) -> None:
    start = now()
    rows = [
        {"at": start - timedelta(hours=hour), "actor_id": admin.id, "actor": "a@x.org", "action": "act",
         "target_kind": "thing", "target": str(hour)}
        for hour in range(5)
    ]  # fmt: skip
    await runtime.database.rows(insert(AuditRow).values(rows))

    async def hours(**query: str | int) -> list[str]:
        return [entry["target"] for entry in await entries(admin.http, **query)]

    assert await hours(action="act") == ["4", "3", "2", "1", "0"]
    assert await hours(action="act", skip=1, limit=2) == ["3", "2"]
    assert await hours(action="act", since=(start - timedelta(hours=1)).isoformat()) == ["1", "0"]
    assert await hours(action="act", until=(start - timedelta(hours=3)).isoformat()) == ["4"]
    assert await hours(target_kind="thing", target="2") == ["2"]
    assert await hours(actor="A@x.org", limit=1) == await hours(actor=str(admin.id), limit=1) == ["4"]
    assert await hours(action="fly") == []
    for bad in ({"since": "yesterday"}, {"limit": 0}, {"skip": -1}, {"limit": 1001}):
        assert (await admin.http.get(AUDIT, params=bad)).status_code == 422


async def test_the_export_has_every_entry_once(admin: Person, runtime: Runtime) -> None:
    rows = [{"action": "act", "target_kind": "thing", "target": str(number)} for number in range(2500)]
    await runtime.database.rows(insert(AuditRow).values(rows))
    answer = await admin.http.get(f"{AUDIT}/export", params={"action": "act"})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["target"] for line in lines] == [str(number) for number in range(2500)]
    assert lines[0] == (await entries(admin.http, target="0"))[0]
    empty = await admin.http.get(f"{AUDIT}/export", params={"action": "fly"})
    assert (empty.status_code, empty.text) == (200, "")


async def test_only_administrators_read_it(user: Person, guest: Person) -> None:
    for person in (user, guest):
        for path in (AUDIT, f"{AUDIT}/export"):
            assert (await person.http.get(path)).status_code == 403


@pytest.mark.parametrize(
    "statement", [delete(AuditRow), update(AuditRow).values(actor="nobody")], ids=["delete", "update"]
)
async def test_nobody_changes_it(runtime: Runtime, statement: Delete | Update) -> None:
    with pytest.raises(DBAPIError, match="only ever added"):
        await runtime.database.rows(statement)
    assert await runtime.database.rows(text("SELECT 1 FROM audit_log"))

"""Decisions explained: which role and grant, what is missing, and what a permission reaches."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.identity.conftest import KeyClient
from tests.people import Person

EXPLAIN = "/auth/explain"


async def explained(http: httpx2.AsyncClient, permission: str, **more: object) -> dict[str, Any]:
    answer = await http.post(EXPLAIN, json={"permission": permission, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    checked = await http.post("/auth/check-permissions", json={"permissions": [permission]})
    if not more:
        assert checked.json()["result"] is found["allowed"], "the explanation is of the decision that routes make"
    return found


async def test_the_role_and_grant_that_decided(user: Person, admin: Person) -> None:
    found = await explained(user.http, "sinas.agents/support/bot.chat:own")
    grant = {"role": "Users", "grant": "sinas.agents.chat:all"}
    assert (found["allowed"], found["grants"], found["missing"]) == (True, [grant], [])
    assert found["decided_by"] == {"source": "role", **grant}
    assert (found["user_id"], found["user_email"]) == (str(user.id), user.email)
    found = await explained(admin.http, "sinas.anything.whatever:all")
    assert found["decided_by"] == {"source": "role", "role": "Admins", "grant": "sinas.*:all"}


async def test_what_would_have_to_be_granted(user: Person) -> None:
    found = await explained(user.http, "titan.courses/math.enroll:own")
    assert found["decided_by"] == {"source": "role", "role": None, "grant": None}
    assert found["allowed"] is False
    assert found["missing"] == [{"to": "role", "permission": "titan.courses/math.enroll:own"}]


async def test_the_ceiling_of_a_key(user: Person, with_key: KeyClient) -> None:
    http = await with_key(user, "sinas.agents.read:own", "sinas.roles.read:own")
    assert (await explained(http, "sinas.agents.read:own"))["allowed"] is True
    found = await explained(http, "sinas.chats.read:own")
    assert found["decided_by"] == {"source": "api_key", "role": None, "grant": None}
    assert found["missing"] == [{"to": "api_key", "permission": "sinas.chats.read:own"}]
    assert found["grants"] == [{"role": "Users", "grant": "sinas.chats.read:own"}], "the user himself may"
    found = await explained(http, "sinas.roles.update:all")
    assert [missing["to"] for missing in found["missing"]] == ["role", "api_key"]


async def test_it_takes_the_right_to_read_roles(user: Person, guest: Person, with_key: KeyClient) -> None:
    for http in (guest.http, await with_key(user), await with_key(user, "sinas.agents.*:all")):
        refused = await http.post(EXPLAIN, json={"permission": "sinas.agents.read:own"})
        assert refused.status_code == 403, "what roles hold is not told"


async def test_simulating_another_user(admin: Person, user: Person, guest: Person) -> None:
    found = await explained(admin.http, "sinas.functions.execute:own", user_id=str(user.id))
    assert (found["allowed"], found["user_email"]) == (True, user.email)
    found = await explained(admin.http, "sinas.functions.execute:own", user_id=str(guest.id))
    assert (found["allowed"], found["missing"]) == (
        False,
        [{"to": "role", "permission": "sinas.functions.execute:own"}],
    )
    assert (await admin.http.patch(f"/api/v1/users/{user.id}", json={"is_active": False})).status_code == 200
    found = await explained(admin.http, "sinas.functions.execute:own", user_id=str(user.id))
    assert (found["allowed"], found["decided_by"]["source"], found["missing"]) == (False, "inactive", [])


async def test_others_are_none_of_ones_business(user: Person, guest: Person, admin: Person) -> None:
    body = {"permission": "sinas.agents.read:own", "user_id": str(guest.id)}
    assert (await user.http.post(EXPLAIN, json=body)).status_code == 403
    assert (await user.http.post(EXPLAIN, json=body | {"user_id": str(user.id)})).status_code == 200
    assert (await admin.http.post(EXPLAIN, json=body | {"user_id": str(uuid4())})).status_code == 404
    asked = {"kind": "agent", "action": "chat", "user_id": str(guest.id)}
    assert (await user.http.get("/auth/list-objects", params=asked)).status_code == 403
    bad = await user.http.post(EXPLAIN, json={"permission": "nonsense"})
    assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "permission"])


async def listed(http: httpx2.AsyncClient, **query: str | int) -> list[str]:
    answer = await http.get("/auth/list-objects", params=query)
    assert answer.status_code == 200, answer.text
    return [f"{found['namespace']}/{found['name']}" for found in answer.json()]


async def test_what_a_permission_reaches(admin: Person, user: Person, guest: Person) -> None:
    for person, name in ((admin, "a"), (admin, "b"), (user, "c")):
        made = await person.http.post("/api/v1/agents", json={"name": name})
        assert made.status_code == 201, made.text
    await admin.http.put("/api/v1/agents/default/b", json={"is_active": False})
    await admin.http.post("/api/v1/llm-providers", json={"name": "p", "provider_type": "scripted"})
    assert await listed(user.http, kind="agent", action="chat") == ["default/a", "default/c"]
    assert await listed(user.http, kind="agents", action="read") == ["default/c"]
    assert await listed(admin.http, kind="agent", action="read") == ["default/a", "default/b", "default/c"]
    assert await listed(admin.http, kind="agent", action="read", skip=1, limit=1) == ["default/b"]
    assert await listed(guest.http, kind="agent", action="chat") == []
    assert await listed(admin.http, kind="llm_provider", action="read") == ["None/p"]
    assert await listed(admin.http, kind="agent", action="chat", user_id=str(user.id)) == ["default/a", "default/c"]
    await admin.http.patch(f"/api/v1/users/{user.id}", json={"is_active": False})
    assert await listed(admin.http, kind="agent", action="chat", user_id=str(user.id)) == []


@pytest.mark.parametrize(
    ("query", "where"),
    [({"kind": "dragon", "action": "chat"}, "kind"), ({"kind": "agent", "action": "fly"}, "action")],
)
async def test_unknown_kinds_and_actions_are_named(user: Person, query: dict[str, str], where: str) -> None:
    answer = await user.http.get("/auth/list-objects", params=query)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", where])
    assert "agent" in answer.text or "chat" in answer.text

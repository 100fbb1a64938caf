"""Declaring LLM providers, and which one answers."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import cast, update
from sqlalchemy.dialects.postgresql import JSONB

from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow
from sinas_server.providers.resolve import NoProviderError, Resolved, resolve
from tests.people import Person

OPENAI = {"name": "main", "provider_type": "openai", "api_key": "sk-secret", "default_model": "gpt-4o"}


async def create(admin: Person, **fields: object) -> dict[str, Any]:
    answer = await admin.http.post("/api/v1/llm-providers", json={**OPENAI, **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_key_is_never_shown(admin: Person) -> None:
    made = await create(admin)
    assert "api_key" not in made
    for path in ("", "/main", f"/{made['id']}", "/main/versions"):
        answer = await admin.http.get(f"/api/v1/llm-providers{path}")
        assert answer.status_code == 200
        assert "sk-secret" not in answer.text


async def test_by_name_and_by_id_with_patch_and_put(admin: Person) -> None:
    made = await create(admin)
    for reference in ("main", made["id"]):
        for method in ("PATCH", "PUT"):
            body = {"default_model": f"{method}-{reference}"}
            answer = await admin.http.request(method, f"/api/v1/llm-providers/{reference}", json=body)
            assert (answer.status_code, answer.json()["default_model"]) == (200, body["default_model"])
    assert (await admin.http.delete(f"/api/v1/llm-providers/{made['id']}")).status_code == 204
    assert (await admin.http.get("/api/v1/llm-providers/main")).status_code == 404


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"provider_type": "none"}, "provider_type"),
        ({"provider_type": "ollama", "api_endpoint": None}, "api_endpoint"),
        ({"provider_type": "ollama"}, "api_endpoint"),
        ({"api_endpoint": "ftp://x"}, "api_endpoint"),
        ({"api_endpoint": "http://169.254.169.254/v1"}, "api_endpoint"),
        ({"api_endpoint": "http://2852039166/v1"}, "api_endpoint"),
        ({"api_endpoint": "http://metadata.google.internal/v1"}, "api_endpoint"),
        ({"api_endpoint": "http://models.example.com:99999/v1"}, "api_endpoint"),
        ({"api_endpoint": "http://[::1/v1"}, "api_endpoint"),
        ({"provider_type": "scripted", "config": {"rules": [{"when": {"regex": "("}}]}}, "config"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
    ],
)
async def test_what_cannot_work_is_refused_with_the_field(admin: Person, fields: dict[str, Any], field: str) -> None:
    answer = await admin.http.post("/api/v1/llm-providers", json={**OPENAI, **fields})
    assert answer.status_code == 422, answer.text
    assert any(field in problem["loc"] for problem in answer.json()["detail"])


async def test_an_endpoint_stored_before_it_was_forbidden_can_be_seen_and_changed(
    runtime: Runtime, admin: Person
) -> None:
    made = await create(admin)
    forbidden = {"api_endpoint": "http://169.254.169.254/v1"}
    stored = ResourceRow.spec.cast(JSONB).concat(cast(forbidden, JSONB))
    await runtime.database.rows(update(ResourceRow).where(ResourceRow.id == UUID(made["id"])).values(spec=stored))
    path = "/api/v1/llm-providers/main"
    assert (await admin.http.get(path)).json()["api_endpoint"] == forbidden["api_endpoint"]
    assert (await admin.http.patch(path, json={"default_model": "m"})).status_code == 422
    fixed = await admin.http.patch(path, json={"api_endpoint": "http://models.example.com/v1"})
    assert (fixed.status_code, fixed.json()["api_endpoint"]) == (200, "http://models.example.com/v1")


async def test_ordinary_users_see_no_providers(admin: Person, user: Person) -> None:
    await create(admin)
    assert (await user.http.get("/api/v1/llm-providers/main")).status_code == 403
    assert (await user.http.get("/api/v1/llm-providers")).json() == []
    assert (await user.http.post("/api/v1/llm-providers", json=OPENAI)).status_code == 403


async def test_one_default_at_a_time(admin: Person) -> None:
    await create(admin, is_default=True)
    await create(admin, name="other", is_default=True)
    found = {one["name"]: one["is_default"] for one in (await admin.http.get("/api/v1/llm-providers")).json()}
    assert found == {"main": False, "other": True}


async def asked(runtime: Runtime, provider: str | None = None, model: str | None = None) -> Resolved:
    async with runtime.database.unit() as db:
        return await resolve(db, UUID(provider) if provider else None, model)


async def test_resolution_goes_from_the_agent_to_the_default(runtime: Runtime, admin: Person) -> None:
    with pytest.raises(NoProviderError, match="No LLM provider is configured"):
        await asked(runtime)
    first = await create(admin)
    second = await create(admin, name="second", default_model="m2", is_default=True)
    assert (await asked(runtime)).name == "second"
    assert (await asked(runtime)).model == "m2"
    mine = await asked(runtime, first["id"])
    assert (mine.name, mine.model, mine.config.api_key) == ("main", "gpt-4o", "sk-secret")
    assert (await asked(runtime, first["id"], "special")).model == "special"
    await admin.http.patch(f"/api/v1/llm-providers/{second['id']}", json={"is_active": False})
    assert (await asked(runtime)).name == "main"
    with pytest.raises(NoProviderError, match="not available"):
        await asked(runtime, second["id"])
    with pytest.raises(NoProviderError, match="not available"):
        await asked(runtime, str(uuid4()))


async def test_without_any_model_the_reason_is_said(runtime: Runtime, admin: Person) -> None:
    await create(admin, default_model=None)
    with pytest.raises(NoProviderError, match="default_model"):
        await asked(runtime)
    await admin.http.patch("/api/v1/llm-providers/main", json={"models": ["first", "second"]})
    assert (await asked(runtime)).model == "first"


async def test_an_agents_provider_cannot_be_deleted(admin: Person) -> None:
    made = await create(admin)
    agent = {"name": "helper", "llm_provider_id": made["id"]}
    assert (await admin.http.post("/api/v1/agents", json=agent)).status_code == 201
    answer = await admin.http.delete("/api/v1/llm-providers/main")
    assert (answer.status_code, "default/helper" in answer.json()["detail"]) == (409, True)

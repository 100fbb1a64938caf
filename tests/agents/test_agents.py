"""Declaring agents: every field, its limits, and the runtime lists."""

from typing import Any

import pytest

from sinas_server.agents.bootstrap import bootstrap
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from tests.people import Person

FULL: dict[str, Any] = {
    "namespace": "support",
    "name": "Desk (first line): EU",
    "description": "Answers.",
    "model": "m",
    "temperature": 0.2,
    "max_tokens": 500,
    "system_prompt": "You help {{ company }}.",
    "input_schema": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}},
    "output_schema": {},
    "initial_messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "enabled_functions": ["support/lookup"],
    "enabled_agents": ["other/agent"],
    "enabled_skills": [{"skill": "default/tone", "preload": True}],
    "function_parameters": {"support/lookup": {"who": {"value": "{{ company }}", "locked": True}}},
    "status_templates": {"support/lookup": "Looking up {{ order }}"},
    "enabled_queries": ["a/b"],
    "query_parameters": {"a/b": {"x": "1"}},
    "enabled_stores": [{"store": "a/b", "access": "readwrite"}],
    "enabled_collections": [{"collection": "a/b", "access": "readonly"}],
    "enabled_components": ["a/b"],
    "enabled_connectors": [{"connector": "a/b", "operations": ["x"], "parameters": {"x": {"y": "z"}}}],
    "hooks": {
        "on_user_message": [{"function": "a/b", "async": True, "on_timeout": "block", "timeout_seconds": 5.0}],
        "on_assistant_message": [],
    },
    "icon": "url:https://example.com/a.png",
    "is_default": False,
    "default_job_timeout": 60,
    "default_keep_alive": True,
    "system_tools": ["codeExecution", {"name": "databaseIntrospection", "connections": ["x"]}],
}


async def create(person: Person, **fields: object) -> dict[str, Any]:
    answer = await person.http.post("/api/v1/agents", json={"name": "helper", **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_every_field_comes_back_as_it_was_given(admin: Person) -> None:
    made = await create(admin, **FULL)
    assert {key: made[key] for key in FULL} == FULL
    assert list(made["input_schema"]["properties"]) == ["z", "a"]
    assert made["icon_url"] == "https://example.com/a.png"
    path = "/api/v1/agents/support/Desk (first line): EU"
    assert (await admin.http.get(path)).json()["id"] == made["id"]


async def test_bare_names_mean_the_default_namespace_and_short_forms_are_accepted(admin: Person) -> None:
    made = await create(admin, enabled_functions=["lookup"], enabled_skills=["tone"], enabled_stores=["s/t"])
    assert made["enabled_functions"] == ["default/lookup"]
    assert made["enabled_skills"] == [{"skill": "default/tone", "preload": False}]
    assert made["enabled_stores"] == [{"store": "s/t", "access": "readonly"}]
    assert made["warnings"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "1st"),
        ("namespace", "a/b"),
        ("temperature", 3),
        ("max_tokens", 0),
        ("system_prompt", "{% if %}"),
        ("input_schema", {"type": "nothing"}),
        ("output_schema", {"$ref": "https://example.com/schema.json"}),
        ("enabled_functions", ["a/b/c"]),
        ("enabled_stores", [{"store": "a/b", "access": "all"}]),
        ("hooks", {"on_user_message": [{"function": "a/b", "on_timeout": "never"}]}),
        ("initial_messages", [{"role": "tool", "content": "x"}]),
        ("llm_provider_id", "not-an-id"),
        ("llm_provider_id", "00000000-0000-4000-8000-000000000000"),
        ("default_job_timeout", 0),
    ],
)
async def test_what_cannot_work_is_refused_with_the_field(admin: Person, field: str, value: object) -> None:
    answer = await admin.http.post("/api/v1/agents", json={"name": "helper", field: value})
    assert answer.status_code == 422, answer.text
    assert any(field in problem["loc"] for problem in answer.json()["detail"])


async def test_the_runtime_lists_what_one_may_chat_with(admin: Person, user: Person, guest: Person) -> None:
    await create(admin, name="open")
    await create(admin, name="asleep", is_active=False)
    for path in ("/agents", "/discovery/agents"):
        assert [one["name"] for one in (await user.http.get(path)).json()] == ["open"]
        assert (await guest.http.get(path)).json() == []
    assert (await user.http.get("/api/v1/agents")).json() == []


async def test_the_default_agent(runtime: Runtime, admin: Person, user: Person, guest: Person) -> None:
    assert (await user.http.get("/agents/default")).status_code == 404
    await bootstrap(runtime, SYSTEM)
    assert (await user.http.get("/agents/default")).json()["name"] == "default"
    assert (await guest.http.get("/agents/default")).status_code == 404
    await create(admin, name="newer", is_default=True)
    assert (await user.http.get("/agents/default")).json()["name"] == "newer"
    assert not (await admin.http.get("/api/v1/agents/default/default")).json()["is_default"]


async def test_what_was_deleted_is_not_made_again_at_the_next_start(runtime: Runtime, admin: Person) -> None:
    await bootstrap(runtime, SYSTEM)
    assert (await admin.http.delete("/api/v1/agents/default/default")).status_code == 204
    await bootstrap(runtime, SYSTEM)
    assert (await admin.http.get("/api/v1/agents/default/default")).status_code == 404

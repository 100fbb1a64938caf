"""Skills: the runtime list, and what an agent's model gets of them."""

import dataclasses
from uuid import uuid4

import pytest
from sqlalchemy import select

from sinas_server.backends.llm import SystemMessage
from sinas_server.chats.prepare import Prepared, prepare
from sinas_server.chats.tables import TurnRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import CallIdentity
from sinas_server.skills.tools import SkillTools
from tests.chats.conftest import Declare, Json, declare, get_chat, open_chat, stream, text_of, working
from tests.people import Person

__all__ = ["declare"]
IDENTITY = CallIdentity(uuid4(), uuid4(), 0, 0, "call_0")
TOOL = "skill__default__research"
RULES: list[Json] = [
    {"when": {"contains": "research"}, "call": [{"tool": TOOL}]},
    {"when": {"after_tool": TOOL}, "answer": f"{{{{ results['{TOOL}'] }}}}"},
]


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(SkillTools(),))


async def write(person: Person, name: str, content: str, **more: object) -> None:
    body = {"name": name, "description": f"About {name}.", "content": content, **more}
    made = await person.http.post("/api/v1/skills", json=body)
    assert made.status_code == 201, made.text


async def prepared(runtime: Runtime, person: Person, agent: str) -> Prepared:
    """What a turn of this agent works with."""
    chat_id = await open_chat(person, agent)
    async with working(runtime):
        await stream(person, chat_id, "hello")
    rows = await runtime.database.rows(select(*TurnRow.__table__.columns).where(TurnRow.chat_id == chat_id))
    return await prepare(runtime, TurnRow(**rows[0]._asdict()))


async def test_a_preloaded_skill_is_part_of_the_system_prompt(
    runtime: Runtime, admin: Person, user: Person, declare: Declare
) -> None:
    await write(admin, "tone", "Be brief. {{ not a template }}")
    await write(admin, "safety", "Be careful.")
    skills: list[Json | str] = [{"skill": "safety", "preload": True}, {"skill": "tone", "preload": True}, "tone"]
    agent = await declare("helper", system_prompt="You help {{ who }}.", input_schema=SCHEMA, enabled_skills=skills)
    found = await prepared(runtime, user, agent)
    [system] = found.prompt.opening
    assert system == SystemMessage(
        "You help people.\n\n# Skill: default/safety\n\nBe careful.\n\n"
        "# Skill: default/tone\n\nBe brief. {{ not a template }}"
    )
    assert found.prompt.tools == {}
    bare = await declare("bare", enabled_skills=[{"skill": "tone", "preload": True}])
    assert len((await prepared(runtime, user, bare)).prompt.opening) == 1


SCHEMA: Json = {"type": "object", "properties": {"who": {"default": "people"}}}


async def test_another_skill_is_read_when_the_model_asks(
    runtime: Runtime, admin: Person, user: Person, declare: Declare
) -> None:
    await write(admin, "research", "# How to\n\nLook twice.")
    agent = await declare("helper", RULES, enabled_skills=["research"])
    chat_id = await open_chat(user, agent)
    async with working(runtime):
        events = await stream(user, chat_id, "research this")
    [start] = [event.data for event in events if event.name == "tool_start"]
    assert (start["name"], start["arguments"], start["description"]) == (TOOL, "{}", "Reading default/research")
    assert text_of(events) == "# How to\n\nLook twice."
    assert (await get_chat(user, chat_id))["messages"][2]["content"] == "# How to\n\nLook twice."
    [tool] = (await prepared(runtime, user, agent)).prompt.tools.values()
    assert (tool.description, dict(tool.parameters)) == ("About research.", {"type": "object", "properties": {}})


async def test_what_is_gone_or_not_the_owners_to_read_is_left_out(
    runtime: Runtime, admin: Person, user: Person, declare: Declare
) -> None:
    await write(user, "mine", "M")
    await write(admin, "theirs", "T")
    await write(admin, "off", "O", is_active=False)
    names = ("mine", "theirs", "off", "none")
    both = ["skill__default__mine", "skill__default__theirs"]
    assert (
        list((await prepared(runtime, user, await declare("admins", enabled_skills=list(names)))).prompt.tools) == both
    )
    provider = (await admin.http.get("/api/v1/agents/default/admins")).json()["llm_provider_id"]
    body = {"name": "users", "enabled_skills": names, "llm_provider_id": provider}
    made = await user.http.post("/api/v1/agents", json=body)
    assert made.status_code == 201, made.text
    assert list((await prepared(runtime, user, "default/users")).prompt.tools) == ["skill__default__mine"]


async def test_a_skill_that_goes_while_the_model_thinks_is_explained(
    runtime: Runtime, admin: Person, user: Person, declare: Declare
) -> None:
    await write(admin, "research", "Look.")
    agent = await declare("helper", RULES, enabled_skills=["research"])
    tool = (await prepared(runtime, user, agent)).prompt.tools[TOOL]
    await admin.http.delete("/api/v1/skills/default/research")
    found = await prepared(runtime, user, agent)
    assert found.prompt.tools == {}
    result = await SkillTools().call_tool(runtime, found.caller, tool, {}, IDENTITY)
    assert (result.is_error, "does not exist any more" in result.content) == (True, True)


async def test_the_runtime_lists_them_by_namespace(admin: Person, user: Person, guest: Person) -> None:
    await write(user, "one", "1")
    await write(user, "two", "2", namespace="other")
    await write(user, "off", "3", is_active=False)
    await write(admin, "theirs", "4")
    for path in ("/skills", "/discovery/skills"):
        assert [one["name"] for one in (await user.http.get(path)).json()] == ["one", "two"]
        assert [one["name"] for one in (await user.http.get(path, params={"namespace": "other"})).json()] == ["two"]
        assert (await guest.http.get(path)).json() == []
    assert [one["name"] for one in (await user.http.get("/api/v1/skills?namespace=default")).json()] == ["off", "one"]


async def test_wrong_fields_are_named(user: Person) -> None:
    answer = await user.http.post("/api/v1/skills", json={"name": "x", "description": "d"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "content"]

"""Agents that call agents: each call is a chat of its own in the same queue; who waits for it holds no slot."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from pydantic import JsonValue
from sqlalchemy import func, select

from sinas_server.chats.delegate import AgentTools
from sinas_server.chats.jobs import CHAT_JOB
from sinas_server.chats.prepare import prepare
from sinas_server.chats.tables import ChatRow, TurnRow
from sinas_server.kernel.errors import ForbiddenError
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import (
    CountingTools,
    Declare,
    Event,
    Json,
    get_chat,
    open_chat,
    reread,
    stream,
    text_of,
)
from tests.people import Person

CALL = "call_agent_default__helper"


def calling(*messages: str, tool: str = CALL, **more: Json) -> list[Json]:
    """Rules of an agent that gives another one these tasks, all at once, and passes on what it says."""
    calls = [{"tool": tool, "arguments": {"message": message, **more}} for message in messages]
    return [
        {"when": {"contains": "go"}, "answer": "I ask.", "call": calls},
        {
            "when": {"after_tool": tool},
            "answer": f"It says: {{{{ every['{tool}'] | map(attribute='response') | join(' ') }}}}",
        },
    ]


@pytest.fixture
def runtime(runtime: Runtime, tools: CountingTools) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(AgentTools(), tools))


async def two(declare: Declare, *messages: str, **helper: JsonValue) -> str:
    """A boss and its helper."""
    fields: Json = {"rules": None, "default": "All done.", "enabled_functions": [], **helper}
    await declare("helper", **fields)
    return await declare("boss", calling(*messages), enabled_agents=["helper"], enabled_functions=[])


def named(events: list[Event], name: str) -> list[Json]:
    return [event.data for event in events if event.name == name]


async def children(person: Person, chat_id: str) -> list[Json]:
    answer = await person.http.get("/chats", params={"parent_chat_id": chat_id})
    assert answer.status_code == 200, answer.text
    return cast(list[Json], answer.json())


async def test_an_agent_has_another_one_work(user: Person, declare: Declare, worker: None) -> None:
    boss = await two(declare, "Sum it up.", description="Sums up.")
    chat_id = await open_chat(user, boss)
    events = await stream(user, chat_id, "go")
    assert [event.name for event in events if event.name != "message"] == ["tool_start", "tool_end", "done"]
    [start], [end] = named(events, "tool_start"), named(events, "tool_end")
    assert (start["name"], start["description"]) == (CALL, "Asking default/helper")
    told = json.loads(end["result"])
    assert told == {"agent_name": "default/helper", "response": "All done.", "chat_id": start["chat_id"]}
    assert text_of(events) == "It says: All done."
    [child] = await children(user, chat_id)
    assert (child["id"], child["parent_chat_id"], child["title"]) == (told["chat_id"], chat_id, "Sum it up.")
    said = (await get_chat(user, child["id"]))["messages"]
    assert [(m["role"], m["content"]) for m in said] == [("user", "Sum it up."), ("assistant", "All done.")]
    assert text_of(await reread(user, child["id"], start["channel_id"])) == "All done."
    assert [chat["id"] for chat in (await user.http.get("/chats")).json()] == [chat_id]


async def test_usage_adds_up(user: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await two(declare, "One", "Two"))
    answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "go"})
    assert answer.json()["content"] == "It says: All done. All done."
    assert answer.json()["usage"]["calls"] == 4
    assert (answer.json()["usage"]["unpriced_calls"], answer.json()["usage"]["cost_usd"]) == (0, 0)


async def test_input_is_given_and_checked(user: Person, declare: Declare, worker: None) -> None:
    schema = {"type": "object", "properties": {"shop": {"type": "string"}}, "required": ["shop"]}
    await declare("helper", input_schema=schema, system_prompt="For {{ shop }}", default="Done.", enabled_functions=[])
    fields: dict[str, Any] = {"enabled_agents": ["helper"], "enabled_functions": []}
    good = await declare("good", calling("Do it", input={"shop": "main"}), **fields)
    bad = await declare("bad", calling("Do it", input={"shop": 7}), **fields)
    chat_id = await open_chat(user, good)
    assert text_of(await stream(user, chat_id, "go")) == "It says: Done."
    chat_id = await open_chat(user, bad)
    [end] = named(await stream(user, chat_id, "go"), "tool_end")
    assert end["result"].startswith("Error: arguments.input.shop")
    assert await children(user, chat_id) == []


async def test_circles_and_depth_are_refused_with_words(user: Person, declare: Declare, worker: None) -> None:
    last = "{{ results.values() | list | first }}"

    def to(name: str) -> list[Json]:
        tool = f"call_agent_default__{name}"
        return [
            {"when": {"contains": "go"}, "call": [{"tool": tool, "arguments": {"message": "go"}}]},
            {"when": {"after_tool": tool}, "answer": last},
        ]

    for name, target in (("a", "b"), ("b", "a")):
        await declare(name, to(target), enabled_agents=[target], enabled_functions=[])
    circle = text_of(await stream(user, await open_chat(user, "default/a"), "go"))
    assert "circle: default/a → default/b → default/a" in circle
    for number in range(9):
        await declare(f"n{number}", to(f"n{number + 1}"), enabled_agents=[f"n{number + 1}"], enabled_functions=[])
    await declare("n9", default="too deep", enabled_functions=[])
    deep = text_of(await stream(user, await open_chat(user, "default/n0"), "go"))
    assert "8 deep" in deep
    assert "too deep" not in deep


async def test_what_the_agents_owner_may_counts_and_nothing_else(
    user: Person, guest: Person, admin: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    boss = await two(declare, "Help")
    [role] = [r for r in (await admin.http.get("/api/v1/roles")).json() if r["name"] == "GuestUsers"]
    grant = {"permission_key": "sinas.agents/default/boss.chat:all", "permission_value": True}
    assert (await admin.http.post("/api/v1/roles/GuestUsers/permissions", json=grant)).is_success, role
    assert (await guest.http.post("/agents/default/helper/chats", json={})).status_code == 403
    chat_id = await open_chat(guest, boss)
    assert text_of(await stream(guest, chat_id, "go")) == "It says: All done."
    rows = await runtime.database.rows(select(ChatRow.user_id, ChatRow.id))
    assert {row.user_id for row in rows} == {guest.id}
    child = next(str(row.id) for row in rows if str(row.id) != chat_id)
    answer = await guest.http.post(f"/chats/{child}/messages", json={"content": "and now without the boss"})
    assert answer.status_code == 403
    await admin.http.put("/api/v1/agents/default/boss", json={"enabled_agents": []})
    turn = await runtime.database.rows(select(*TurnRow.__table__.columns).where(TurnRow.parent_turn_id.is_not(None)))
    with pytest.raises(ForbiddenError, match="may not call it any more"):
        await prepare(runtime, TurnRow(**turn[0]._asdict()))


@asynccontextmanager
async def one_slot(runtime: Runtime) -> AsyncIterator[Worker[Any]]:
    worker: Worker[Any] = Worker(dataclasses.replace(runtime, worker_name="one"), CHAT_JOB, 1)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.timeout(600)  # a hundred turns one after the other
async def test_fifty_parents_with_a_child_each_finish_at_concurrency_1(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    boss = await two(declare, "Help")
    chats = [await open_chat(user, boss) for _ in range(50)]
    async with one_slot(runtime) as worker:
        streams = [asyncio.create_task(stream(user, chat_id, "go")) for chat_id in chats]
        most = 0
        while not all(task.done() for task in streams):
            most = max(most, len(worker.running))
            await asyncio.sleep(0.02)
    assert [text_of(await task) for task in streams] == ["It says: All done."] * 50
    assert most == 1
    [count] = await runtime.database.rows(
        select(func.count()).select_from(TurnRow).where(TurnRow.status == "COMPLETED")
    )
    assert count[0] == 100


async def test_stopping_the_parent_stops_the_children(
    user: Person, declare: Declare, worker: None, runtime: Runtime, tools: CountingTools
) -> None:
    tools.hold = asyncio.Event()
    look: list[JsonValue] = [{"when": {"contains": "Look"}, "call": [{"tool": "shop/look"}]}]
    chat_id = await open_chat(user, await two(declare, "Look", rules=look, enabled_functions=["shop/look"]))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    while not tools.ran:
        await asyncio.sleep(0.01)
    stopped = await user.http.post(f"/chats/{chat_id}/stop")
    assert stopped.json() == {"status": "stopped", "withdrawn": 0}
    assert (await streaming)[-1].data["status"] == "cancelled"
    [child] = await children(user, chat_id)
    while (turn := (await get_chat(user, child["id"]))["last_turn"])["status"] != "CANCELLED":
        await asyncio.sleep(0.01)
    ended = await reread(user, child["id"], turn["channel_id"])
    assert ended[-1].data["status"] == "cancelled"


async def test_deleting_the_parent_deletes_and_stops_the_children(
    user: Person, declare: Declare, worker: None, runtime: Runtime, tools: CountingTools
) -> None:
    tools.hold = asyncio.Event()
    look: list[JsonValue] = [{"when": {"contains": "Look"}, "call": [{"tool": "shop/look"}]}]
    chat_id = await open_chat(user, await two(declare, "Look", rules=look, enabled_functions=["shop/look"]))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    while not tools.ran:
        await asyncio.sleep(0.01)
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    assert (await streaming)[-1].name == "error"
    assert await runtime.database.rows(select(ChatRow.id)) == []
    assert await runtime.database.rows(select(TurnRow.id)) == []


async def test_a_child_that_fails_or_is_gone_is_told(
    user: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    schema: Json = {"type": "object", "required": ["x"]}
    chat_id = await open_chat(user, await two(declare, "Help", output_schema=schema))
    [end] = named(await stream(user, chat_id, "go"), "tool_end")
    told = json.loads(end["result"])
    assert told["response"].startswith("Error: the agent's answer is not JSON")
    assert (await children(user, chat_id))[0]["id"] == told["chat_id"]


async def statuses(runtime: Runtime) -> list[str]:
    rows = await runtime.database.rows(select(TurnRow.status).order_by(TurnRow.status))
    return [row.status for row in rows]


DANGER: list[JsonValue] = [
    {"when": {"contains": "Buy"}, "answer": "I buy.", "call": [{"tool": "shop/danger", "arguments": {"n": "1"}}]},
    {"when": {"after_tool": "shop/danger"}, "answer": "Bought."},
]


async def careful(user: Person, declare: Declare, *messages: str) -> tuple[str, list[Event]]:
    """A chat whose agent's helper needs an approval, and its events until the chat waits for it."""
    boss = await two(declare, *messages, rules=DANGER, enabled_functions=["shop/danger"])
    chat_id = await open_chat(user, boss)
    return chat_id, await stream(user, chat_id, "go")


async def decide(person: Person, chat_id: str, call: str, *, approved: bool = True) -> Json:
    answer = await person.http.post(f"/chats/{chat_id}/approve-tool/{call}", json={"approved": approved})
    assert answer.status_code == 202, answer.text
    return cast(Json, answer.json())


async def test_what_a_called_agent_asks_is_asked_in_the_chat_of_its_caller(
    user: Person, admin: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, events = await careful(user, declare, "Buy it")
    names = [event.name for event in events if event.name != "message"]
    assert names == ["tool_start", "approval_required", "round_suspended", "done"]
    [asked] = named(events, "approval_required")
    assert (asked["function_name"], asked["arguments"]) == ("danger", {"n": "1"})
    [pending] = (await get_chat(user, chat_id))["pending_approvals"]
    assert pending["tool_call_id"] == asked["tool_call_id"]
    [listed] = (await user.http.get("/approvals")).json()
    assert (listed["agent"], listed["chat_id"]) == ("default/helper", (await children(user, chat_id))[0]["id"])
    path = f"/chats/{chat_id}/approve-tool/{asked['tool_call_id']}"
    assert (await admin.http.post(path, json={"approved": True})).status_code == 404
    told = await decide(user, chat_id, asked["tool_call_id"])
    assert told["resume"] == "queued"
    went_on = await reread(user, chat_id, told["channel_id"])
    assert [event.name for event in went_on if event.name != "message"] == ["tool_end", "done"]
    assert text_of(went_on) == "It says: Bought."
    assert len(tools.ran) == 1


async def test_another_answer_stops_the_called_agent_that_waits(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, events = await careful(user, declare, "Buy it")
    [asked] = named(events, "approval_required")
    said = (await get_chat(user, chat_id))["messages"][0]["id"]
    answer = await user.http.post(f"/chats/{chat_id}/messages/{said}/regenerate", timeout=60)
    assert (answer.status_code, answer.json()["status"]) == (200, "input_required")
    first, second = [await get_chat(user, child["id"]) for child in reversed(await children(user, chat_id))]
    assert (first["last_turn"]["status"], second["last_turn"]["status"]) == ("CANCELLED", "SUSPENDED")
    late = await user.http.post(f"/chats/{chat_id}/approve-tool/{asked['tool_call_id']}", json={"approved": True})
    assert late.status_code == 404
    assert [call["chat_id"] for call in (await user.http.get("/approvals")).json()] == [second["id"]]
    await decide(user, chat_id, answer.json()["pending_approvals"][0]["tool_call_id"])
    went_on = (await get_chat(user, chat_id))["last_turn"]["channel_id"]
    assert text_of(await reread(user, chat_id, went_on)) == "It says: Bought."
    assert len(tools.ran) == 1


async def test_a_decision_in_the_childs_own_chat_lets_both_go_on(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, _ = await careful(user, declare, "Buy it")
    [child] = await children(user, chat_id)
    [pending] = (await get_chat(user, child["id"]))["pending_approvals"]
    told = await decide(user, child["id"], pending["tool_call_id"], approved=False)
    assert text_of(await reread(user, child["id"], told["channel_id"])) == "Bought."
    while (chat := await get_chat(user, chat_id))["last_turn"]["status"] != "COMPLETED":
        await asyncio.sleep(0.01)
    assert chat["messages"][-1]["content"] == "It says: Bought."
    assert tools.ran == []


async def test_two_called_agents_are_decided_on_one_by_one(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, events = await careful(user, declare, "Buy one", "Buy two")
    first, second = [event["tool_call_id"] for event in named(events, "approval_required")]
    assert first != second
    told = await decide(user, chat_id, first)
    again = await reread(user, chat_id, told["channel_id"])
    assert [event["tool_call_id"] for event in named(again, "approval_required")] == [second]
    assert again[-1].data["status"] == "suspended"
    assert [json.loads(event["result"])["response"] for event in named(again, "tool_end")] == ["Bought."]
    told = await decide(user, chat_id, second)
    assert text_of(await reread(user, chat_id, told["channel_id"])) == "It says: Bought. Bought."
    assert len(tools.ran) == 2


async def test_another_message_ends_what_called_agents_ask(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, _ = await careful(user, declare, "Buy it")
    assert text_of(await stream(user, chat_id, "never mind")) == "Hello, I am the agent."
    [child] = await children(user, chat_id)
    assert (await get_chat(user, child["id"]))["last_turn"]["status"] == "CANCELLED"
    assert (await user.http.get("/approvals")).json() == []
    assert tools.ran == []


async def test_always_allowed_holds_for_the_whole_conversation(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, events = await careful(user, declare, "Buy it")
    [asked] = named(events, "approval_required")
    path = f"/chats/{chat_id}/approve-tool/{asked['tool_call_id']}"
    told = (await user.http.post(path, json={"approved": True, "always_allow": True})).json()
    await reread(user, chat_id, told["channel_id"])
    again = await stream(user, chat_id, "go")
    assert named(again, "approval_required") == []
    assert text_of(again) == "It says: Bought."

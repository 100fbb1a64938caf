"""What an agent says of its tools by patterns, approvals outside of their chat, limits of time and size, and rights."""

import asyncio
import dataclasses
import json
from datetime import timedelta
from typing import cast

import pytest
from pydantic import JsonValue
from sqlalchemy import func, update

from sinas_server.backends.llm import Answer, ToolCall
from sinas_server.chats import prepare as prepare_module
from sinas_server.chats.results import ResultTools
from sinas_server.chats.tables import ToolCallRow
from sinas_server.chats.waits import WAITS_LOOP
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
    working,
)
from tests.chats.test_failures import Model, with_model
from tests.people import Person

FUNCTIONS: list[JsonValue] = ["shop/danger", "shop/look", "shop/buy"]


def calls(*tools: str, **arguments: JsonValue) -> list[Json]:
    return [
        {"when": {"contains": "go"}, "call": [{"tool": tool, "arguments": arguments} for tool in tools]},
        {"when": {"after_tool": tools[0]}, "answer": f"{{{{ results['{tools[0]}'] }}}}"},
    ]


async def started(person: Person, declare: Declare, rules: list[Json], **fields: JsonValue) -> tuple[str, list[Event]]:
    agent = await declare("ruled", rules, enabled_functions=FUNCTIONS, **fields)
    chat_id = await open_chat(person, agent)
    return chat_id, await stream(person, chat_id, "go")


def ends(events: list[Event]) -> list[str]:
    return [event.data["result"] for event in events if event.name == "tool_end"]


async def test_an_agent_asks_before_calls_that_fit_a_pattern(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    policy: Json = {"shop/look": "allow", "shop__*": "ask", "shop/danger": "allow"}
    chat_id, events = await started(
        user, declare, calls("shop/buy", "shop/look", "shop/danger"), approval_policy=policy
    )
    waiting = [event.data["function_name"] for event in events if event.name == "approval_required"]
    assert waiting == ["buy", "danger"]  # what a function asks for itself, `allow` does not take away
    assert [call.index for call in tools.ran] == [1]
    assert len((await get_chat(user, chat_id))["pending_approvals"]) == 2


async def test_what_a_policy_denies_is_no_tool(user: Person, declare: Declare, worker: None) -> None:
    _, events = await started(user, declare, calls("shop/look"), approval_policy={"shop/*": "deny"})
    assert events[-1].name == "error"
    assert "shop/look" in events[-1].data["error"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("approval_policy", {"shop/*": "perhaps"}),
        ("tool_timeouts", {"shop/*": 0}),
        ("function_parameters", {"shop/look": {"n": "{{ broken"}}),
        ("status_templates", {"shop/look": "{% if %}"}),
    ],
)
async def test_wrong_rules_are_refused(admin: Person, field: str, value: JsonValue) -> None:
    answer = await admin.http.post("/api/v1/agents", json={"name": "ruled", field: value})
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["detail"][0]["loc"]


async def approvals(person: Person) -> list[Json]:
    answer = await person.http.get("/approvals")
    assert answer.status_code == 200, answer.text
    return cast(list[Json], answer.json())


async def test_approvals_are_listed_and_decided_outside_of_the_chat(
    user: Person, admin: Person, guest: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, _ = await started(user, declare, calls("shop/danger", "shop/danger", n="1"))
    found = await approvals(user)
    assert [one["chat_id"] for one in found] == [chat_id] * 2
    assert {key: found[0][key] for key in ("agent", "function_namespace", "function_name", "arguments")} == {
        "agent": "default/ruled",
        "function_namespace": "shop",
        "function_name": "danger",
        "arguments": {"n": "1"},
    }
    assert found[0]["created_at"] < found[0]["expires_at"]
    assert await approvals(admin) == []
    assert (await guest.http.get("/approvals")).status_code == 403
    path = f"/approvals/{chat_id}/{found[0]['tool_call_id']}"
    assert (await admin.http.post(path, json={"approved": True})).status_code == 404
    first = await user.http.post(path, json={"approved": True})
    assert (first.status_code, first.json()["resume"]) == (202, "waiting")
    assert (await user.http.post(path, json={"approved": True})).status_code == 404
    assert [one["tool_call_id"] for one in await approvals(user)] == [found[1]["tool_call_id"]]
    last = await user.http.post(f"/approvals/{chat_id}/{found[1]['tool_call_id']}", json={"approved": False})
    assert (last.json()["status"], last.json()["resume"]) == ("rejected", "queued")
    await reread(user, chat_id, last.json()["channel_id"])
    assert [call.index for call in tools.ran] == [0]
    assert await approvals(user) == []


async def test_an_approval_that_nobody_gives_expires(
    user: Person, declare: Declare, worker: None, runtime: Runtime, tools: CountingTools
) -> None:
    chat_id, _ = await started(user, declare, calls("shop/danger"))
    await runtime.database.rows(update(ToolCallRow).values(wait_until=func.now() - timedelta(seconds=1)))
    await WAITS_LOOP.step(runtime)
    while (turn := (await get_chat(user, chat_id))["last_turn"])["status"] != "COMPLETED":
        await asyncio.sleep(0.01)
    assert "did not decide" in text_of(await reread(user, chat_id, turn["channel_id"]))
    assert tools.ran == []
    assert await approvals(user) == []


async def test_a_call_that_takes_too_long_is_stopped(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    tools.hold = asyncio.Event()
    _, events = await started(user, declare, calls("shop/look"), tool_timeouts={"shop/*": 0.05})
    assert text_of(events) == "Error: stopped, since it took longer than 0.05 seconds"
    assert events[-1].data["status"] == "completed"


async def test_a_large_result_is_read_page_by_page(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    text = "0123456789" * 250
    call = "{{ groups.call }}"
    rules: list[Json] = [
        {"when": {"contains": "go"}, "call": [{"tool": "shop/look", "arguments": {"text": text}}]},
        {
            "when": {"regex": "read (?P<call>\\S+) (?P<page>\\d+)"},
            "call": [
                {"tool": "read_tool_result", "arguments": {"tool_call_id": call, "page": "{{ groups.page | int }}"}}
            ],
        },
        {"when": {"after_tool": "read_tool_result"}, "answer": "{{ results['read_tool_result'] }}"},
        {"when": {"after_tool": "shop/look"}, "answer": "Seen."},
    ]
    small = dataclasses.replace(
        runtime,
        settings=runtime.settings.model_copy(update={"tool_result_page": 1000}),
        toolsets=(tools, ResultTools()),
    )
    async with working(small):
        chat_id, events = await started(user, declare, rules)
        [end] = [event.data for event in events if event.name == "tool_end"]
        whole = json.dumps({"tool": "shop/look", "got": {"text": text}})
        assert end["result"].startswith(whole[:1000])
        assert "[page 1 of 3; go on with read_tool_result(" in end["result"]
        assert (await get_chat(user, chat_id))["messages"][2]["content"] == end["result"]
        read = end["result"][:1000]
        for page in (2, 3):
            said = text_of(await stream(user, chat_id, f"read {end['tool_call_id']} {page}"))
            read += said.partition("\n\n[page")[0]
        assert read == whole
        assert "between 1 and 3" in text_of(await stream(user, chat_id, f"read {end['tool_call_id']} 4"))
        assert "no large result" in text_of(await stream(user, chat_id, "read nothing 1"))
        other = await open_chat(user, "default/ruled")
        error = (await stream(user, other, f"read {end['tool_call_id']} 1"))[-1]
        assert error.name == "error"  # no other chat has the tool


async def test_rights_count_at_the_time_of_the_call(
    user: Person,
    admin: Person,
    declare: Declare,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    tools: CountingTools,
) -> None:
    monkeypatch.setattr(prepare_module, "FRESH_SECONDS", -1.0)
    changed = asyncio.Event()
    model = Model([changed, Answer("", (ToolCall("c1", "shop__look", "{}"),))], [Answer("Then not.")])
    chat_id = await open_chat(user, await declare("ruled", enabled_functions=FUNCTIONS))
    async with working(with_model(runtime, model)):
        streaming = asyncio.create_task(stream(user, chat_id, "go"))
        while not model.requests:
            await asyncio.sleep(0.01)
        await admin.http.put("/api/v1/agents/default/ruled", json={"enabled_functions": ["shop/buy"]})
        changed.set()
        events = await streaming
    assert ends(events) == ["Error: the agent may not use 'shop__look' any more"]
    assert tools.ran == []
    assert (await get_chat(user, chat_id))["last_turn"]["status"] == "COMPLETED"

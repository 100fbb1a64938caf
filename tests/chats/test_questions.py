"""Questions of an agent to its user: `askUser` and the pending-input endpoints."""

import dataclasses
from datetime import timedelta
from typing import cast
from uuid import uuid4

import pytest
from sqlalchemy import func, select, update

from sinas_server.chats.tables import ToolCallRow
from sinas_server.chats.tools import SystemTools
from sinas_server.chats.waits import WAITS_LOOP
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
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

QUESTION: Json = {"question": "Which colour?", "options": ["red", "blue"]}
RULES: list[Json] = [
    {"when": {"contains": "paint"}, "answer": "I ask.", "call": [{"tool": "askUser", "arguments": QUESTION}]},
    {
        "when": {"contains": "both"},
        "call": [
            {"tool": "askUser", "arguments": {"question": "First?"}},
            {"tool": "shop/danger", "arguments": {"n": "1"}},
            {"tool": "shop/look", "arguments": {"n": "2"}},
        ],
    },
    {"when": {"after_tool": "askUser"}, "answer": "You said: {{ results.askUser }}"},
]


@pytest.fixture
def runtime(runtime: Runtime, tools: CountingTools) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(SystemTools(), tools))


async def asked(person: Person, declare: Declare, content: str = "paint") -> tuple[str, list[Event]]:
    """A chat whose agent has asked, and the events until then."""
    fields: Json = {"enabled_functions": ["shop/danger", "shop/look"], "system_tools": ["askUser", "unknownTool"]}
    chat_id = await open_chat(person, await declare("curious", RULES, **fields))
    return chat_id, await stream(person, chat_id, content)


def call_of(events: list[Event]) -> str:
    return cast(str, next(event.data["tool_call_id"] for event in events if event.name == "input_required"))


async def pending(person: Person, chat_id: str) -> list[Json]:
    answer = await person.http.get(f"/chats/{chat_id}/pending-input")
    assert answer.status_code == 200, answer.text
    return cast(list[Json], answer.json())


async def test_the_agent_asks_and_goes_on_with_the_answer(user: Person, declare: Declare, worker: None) -> None:
    chat_id, events = await asked(user, declare)
    names = [event.name for event in events if event.name != "message"]
    assert names == ["tool_start", "input_required", "round_suspended", "done"]
    asking, suspended = events[-3].data, events[-2].data
    assert (asking["question"], asking["options"]) == ("Which colour?", ["red", "blue"])
    channel = (await get_chat(user, chat_id))["last_turn"]["channel_id"]
    assert (suspended["tool_call_ids"], suspended["channel_id"]) == ([asking["tool_call_id"]], channel)
    assert suspended["usage"]["calls"] == 1
    assert events[-1].data["status"] == "suspended"
    [question] = await pending(user, chat_id)
    assert question.pop("created_at") is not None
    assert question == {key: asking[key] for key in ("tool_call_id", "question", "options", "expires_at")}
    assert (await get_chat(user, chat_id))["pending_approvals"] == []

    path = f"/chats/{chat_id}/pending-input/{asking['tool_call_id']}"
    answer = await user.http.post(path, json={"answer": "green"})
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert (told["status"], told["tool_call_id"]) == ("answered", asking["tool_call_id"])
    assert (told["resumed"], told["resume_pending"]) == (True, False)
    went_on = await reread(user, chat_id, told["channel_id"])
    assert [event.name for event in went_on if event.name != "message"] == ["tool_end", "done"]
    assert text_of(went_on) == "You said: green"
    assert await pending(user, chat_id) == []
    again = await reread(user, chat_id, channel)
    assert [(e.id, e.name, e.data) for e in again][-3:] == [(e.id, e.name, e.data) for e in events][-3:]


async def test_waiting_for_what_the_agent_says(user: Person, declare: Declare, worker: None) -> None:
    chat_id, events = await asked(user, declare)
    path = f"/chats/{chat_id}/pending-input/{call_of(events)}"
    answer = await user.http.post(path, json={"answer": {"shade": 7}, "wait": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["status"], told["chat_id"], told["pending_inputs"]) == ("completed", chat_id, [])
    assert told["reply"] == told["message"]["content"] == "You said: {'shade': 7}"
    assert told["usage"]["calls"] == 2


async def test_no_such_question_and_one_that_is_resolved(
    user: Person, admin: Person, declare: Declare, worker: None
) -> None:
    chat_id, events = await asked(user, declare)
    path = f"/chats/{chat_id}/pending-input"
    say = {"answer": "red"}
    assert (await user.http.post(f"{path}/nothing", json=say)).status_code == 404
    assert (await admin.http.post(f"{path}/{call_of(events)}", json=say)).status_code == 404
    assert (await user.http.post(f"/chats/{uuid4()}/pending-input/{call_of(events)}", json=say)).status_code == 404
    assert (await user.http.get(f"/chats/{uuid4()}/pending-input")).status_code == 404
    assert (await user.http.post(f"{path}/{call_of(events)}", json={})).status_code == 422
    wrong = await user.http.post(f"/chats/{chat_id}/approve-tool/{call_of(events)}", json={"approved": True})
    assert wrong.status_code == 404
    assert (await user.http.post(f"{path}/{call_of(events)}", json=say)).status_code == 202
    late = await user.http.post(f"{path}/{call_of(events)}", json=say)
    assert (late.status_code, "already" in late.json()["detail"]) == (409, True)


async def test_sending_and_invoking_say_what_is_asked(user: Person, declare: Declare, worker: None) -> None:
    chat_id, _ = await asked(user, declare)
    answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "paint"}, timeout=60)
    assert answer.json()["status"] == "input_required"
    assert [q["question"] for q in answer.json()["pending_inputs"]] == ["Which colour?"]
    invoked = await user.http.post("/agents/default/curious/invoke", json={"message": "paint"}, timeout=60)
    assert (invoked.json()["status"], invoked.json()["reply"]) == ("input_required", "I ask.")
    assert [q["options"] for q in invoked.json()["pending_inputs"]] == [["red", "blue"]]


async def test_a_question_beside_an_approval_waits_for_both(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, events = await asked(user, declare, "both")
    assert [event.name for event in events] == [
        *("tool_start", "tool_start", "tool_end"),
        *("input_required", "approval_required", "round_suspended", "done"),
    ]
    question = call_of(events)
    approval = next(event.data["tool_call_id"] for event in events if event.name == "approval_required")
    first = await user.http.post(f"/chats/{chat_id}/pending-input/{question}", json={"answer": "yes"})
    assert (first.json()["resumed"], first.json()["resume_pending"]) == (False, True)
    repeated = await reread(user, chat_id, first.json()["channel_id"])
    assert [event.name for event in repeated] == ["approval_required", "round_suspended", "done"]
    last = await user.http.post(f"/chats/{chat_id}/approve-tool/{approval}", json={"approved": True})
    went_on = await reread(user, chat_id, last.json()["channel_id"])
    assert [event.name for event in went_on if event.name != "message"] == [
        *("tool_start", "tool_end", "tool_end", "done"),
    ]
    assert text_of(went_on) == "You said: yes"
    assert sorted(run.index for run in tools.ran) == [1, 2]


async def test_an_unanswered_question_expires(user: Person, declare: Declare, worker: None, runtime: Runtime) -> None:
    chat_id, events = await asked(user, declare)
    await runtime.database.rows(update(ToolCallRow).values(wait_until=func.now() - timedelta(seconds=1)))
    await WAITS_LOOP.step(runtime)
    while (turn := (await get_chat(user, chat_id))["last_turn"])["status"] != "COMPLETED":
        assert turn["status"] in ("PENDING", "RUNNING")
    assert text_of(await reread(user, chat_id, turn["channel_id"])) == "You said: The user did not answer in time."
    late = await user.http.post(f"/chats/{chat_id}/pending-input/{call_of(events)}", json={"answer": "red"})
    assert late.status_code == 409


async def test_a_wrong_question_is_explained_to_the_model(user: Person, declare: Declare, worker: None) -> None:
    rules: list[Json] = [
        {"when": {"contains": "x"}, "call": [{"tool": "askUser", "arguments": {"question": ""}}]},
        {"when": {"contains": "y"}, "call": [{"tool": "askUser", "arguments": {"question": "q", "options": [1]}}]},
        {"when": {"after_tool": "askUser"}, "answer": "{{ results.askUser }}"},
    ]
    chat_id = await open_chat(
        user, await declare("odd", rules, system_tools=[{"name": "askUser"}], enabled_functions=[])
    )
    assert "arguments.question" in text_of(await stream(user, chat_id, "x"))
    assert "arguments.options" in text_of(await stream(user, chat_id, "y"))


async def test_answers_are_audited(user: Person, declare: Declare, worker: None, runtime: Runtime) -> None:
    chat_id, events = await asked(user, declare)
    await user.http.post(f"/chats/{chat_id}/pending-input/{call_of(events)}", json={"answer": "red"})
    rows = await runtime.database.rows(select(AuditRow.action, AuditRow.actor, AuditRow.detail))
    [row] = [row for row in rows if row.action == "answer_question"]
    assert (row.actor, row.detail) == (user.email, {"tool_call_id": call_of(events)})

"""Calls that need the user's approval: asking, deciding, going on, and what nobody but the user may do."""

from typing import cast
from uuid import uuid4

from sqlalchemy import select, text

from sinas_server.chats.tables import ToolCallRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from tests.chats.conftest import CountingTools, Declare, Event, Json, get_chat, open_chat, reread, stream, text_of
from tests.people import Person

RULES = [
    {
        "when": {"contains": "do"},
        "answer": "I will.",
        "call": [
            {"tool": "shop/danger", "arguments": {"n": "1"}},
            {"tool": "shop/look", "arguments": {"n": "2"}},
            {"tool": "shop/danger", "arguments": {"n": "3"}},
        ],
    },
    {"when": {"after_tool": "shop/danger"}, "answer": "Done: {{ results['shop/danger'] }}"},
]
FUNCTIONS = ["shop/danger", "shop/look"]


async def asked(person: Person, declare: Declare) -> tuple[str, list[Event]]:
    """A chat whose agent waits, and the events until then."""
    chat_id = await open_chat(person, await declare("careful", RULES, enabled_functions=FUNCTIONS))
    return chat_id, await stream(person, chat_id, "do it")


async def decide(person: Person, chat_id: str, call: str, approved: bool = True, **more: bool) -> Json:
    answer = await person.http.post(f"/chats/{chat_id}/approve-tool/{call}", json={"approved": approved, **more})
    assert answer.status_code == 202, answer.text
    return cast(Json, answer.json())


async def test_the_turn_waits_for_every_decision_and_goes_on_in_new_channels(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, events = await asked(user, declare)
    assert [event.name for event in events if event.name != "message"] == [
        "tool_start",  # what needs no approval is carried out
        "tool_end",
        "approval_required",
        "approval_required",
        "round_suspended",
        "done",
    ]
    first, second = [event.data for event in events if event.name == "approval_required"]
    assert first["arguments"] == {"n": "1"}
    assert (first["function_namespace"], first["function_name"]) == ("shop", "danger")
    assert events[-1].data["status"] == "suspended"
    chat = await get_chat(user, chat_id)
    assert [p["tool_call_id"] for p in chat["pending_approvals"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert chat["pending_approvals"][0]["arguments"] == {"n": "1"}
    assert chat["active_channel_id"] is None

    answer = await decide(user, chat_id, first["tool_call_id"])
    assert (answer["status"], answer["resume"]) == ("approved", "waiting")
    repeated = await reread(user, chat_id, answer["channel_id"])
    assert [event.name for event in repeated] == ["approval_required", "round_suspended", "done"]
    assert repeated[0].data["tool_call_id"] == second["tool_call_id"]
    assert [call.index for call in tools.ran] == [1]

    answer = await decide(user, chat_id, second["tool_call_id"], approved=False)
    assert (answer["status"], answer["resume"]) == ("rejected", "queued")
    went_on = await reread(user, chat_id, answer["channel_id"])
    assert [event.name for event in went_on if event.name != "message"] == [
        "tool_start",
        "tool_end",
        "tool_end",
        "done",
    ]
    assert "did not approve" in text_of(went_on)
    assert sorted(call.index for call in tools.ran) == [0, 1]
    chat = await get_chat(user, chat_id)
    assert [m["role"] for m in chat["messages"]] == ["user", "assistant", "tool", "tool", "tool", "assistant"]
    assert "did not approve" in chat["messages"][4]["content"]
    assert chat["pending_approvals"] == []
    for channel in {answer["channel_id"], chat["last_turn"]["channel_id"]}:
        assert text_of(await reread(user, chat_id, channel)) == text_of(went_on)


async def test_the_first_channel_can_be_read_again_as_it_was(
    user: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    chat_id, events = await asked(user, declare)
    channel = (await get_chat(user, chat_id))["last_turn"]["channel_id"]
    assert text_of((await reread(user, chat_id, channel))[:1]) == "I will."
    for event in [event for event in events if event.name == "approval_required"]:
        await decide(user, chat_id, event.data["tool_call_id"])
    again = await reread(user, chat_id, channel)
    assert [(e.id, e.name) for e in again if e.name != "message"] == [
        (e.id, e.name) for e in events if e.name != "message"
    ]


async def test_sending_says_that_it_waits(user: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await declare("careful", RULES, enabled_functions=FUNCTIONS))
    answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "do it"})
    assert answer.json()["status"] == "input_required"
    assert len(answer.json()["pending_approvals"]) == 2
    assert answer.json()["pending_inputs"] == []


async def test_another_message_ends_the_wait(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, events = await asked(user, declare)
    call = next(event.data["tool_call_id"] for event in events if event.name == "approval_required")
    assert text_of(await stream(user, chat_id, "never mind")) == "Hello, I am the agent."
    roles = [message["role"] for message in (await get_chat(user, chat_id))["messages"]]
    assert roles == ["user", "assistant", "tool", "tool", "tool", "user", "assistant"]
    late = await user.http.post(f"/chats/{chat_id}/approve-tool/{call}", json={"approved": True})
    assert late.status_code == 404
    assert [run.index for run in tools.ran] == [1]


async def test_allowed_for_always_asks_no_more_in_this_chat(user: Person, declare: Declare, worker: None) -> None:
    chat_id, events = await asked(user, declare)
    for event in [event for event in events if event.name == "approval_required"]:
        last = await decide(user, chat_id, event.data["tool_call_id"], always_allow=True)
    assert (await reread(user, chat_id, last["channel_id"]))[-1].data["status"] == "completed"
    again = await stream(user, chat_id, "do it again")
    assert "approval_required" not in [event.name for event in again]
    assert again[-1].data["status"] == "completed"


async def test_only_the_user_decides(
    user: Person, admin: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    chat_id, events = await asked(user, declare)
    call = next(event.data["tool_call_id"] for event in events if event.name == "approval_required")
    path = f"/chats/{chat_id}/approve-tool/{call}"
    assert (await admin.http.post(path, json={"approved": True})).status_code == 404
    assert (await user.http.post(f"/chats/{chat_id}/approve-tool/nothing", json={"approved": True})).status_code == 404
    assert (await user.http.post(f"/chats/{uuid4()}/approve-tool/{call}", json={"approved": True})).status_code == 404
    assert (await user.http.post(path, json={})).status_code == 422
    await decide(user, chat_id, call)
    assert (await user.http.post(path, json={"approved": True})).status_code == 404  # decided
    rows = await runtime.database.rows(select(AuditRow.action, AuditRow.actor, AuditRow.detail))
    recorded = [row for row in rows if row.action == "approve_tool"]
    assert [row.actor for row in recorded] == [user.email]
    assert recorded[0].detail["target"] == "shop/danger"
    assert len(recorded[0].detail["arguments_hash"]) == 64


async def test_an_approval_is_for_these_arguments_only(
    user: Person, declare: Declare, worker: None, runtime: Runtime, tools: CountingTools
) -> None:
    chat_id, events = await asked(user, declare)
    first, second = [event.data["tool_call_id"] for event in events if event.name == "approval_required"]
    await decide(user, chat_id, first)
    async with runtime.database.unit() as db:
        await db.execute(text('UPDATE tool_calls SET arguments = \'{"n": "other"}\' WHERE index = 0'))
    last = await decide(user, chat_id, second)
    await reread(user, chat_id, last["channel_id"])
    assert sorted(run.index for run in tools.ran) == [1, 2]
    row = (await runtime.database.rows(select(ToolCallRow.result).where(ToolCallRow.index == 0)))[0]
    assert "not the call that was approved" in row.result

"""Messages that are given to the turn that runs."""

import asyncio

import pytest
from fastapi import FastAPI

from sinas_server.backends.llm import Answer, TextDelta
from sinas_server.kernel.runtime import Runtime
from tests.chats.busy import ECHO, an_agent, calling, queued, said, unworked
from tests.chats.conftest import (
    CountingTools,
    Declare,
    Event,
    Json,
    get_chat,
    joined,
    open_chat,
    parse,
    reread,
    stream,
    text_of,
    working,
)
from tests.chats.test_failures import Model, with_model
from tests.people import Person, http_client, make_key


async def injecting(person: Person, chat_id: str, content: str) -> asyncio.Task[list[Event]]:
    """The stream of a message that is injected into a turn with a call under way."""
    sent = asyncio.create_task(stream(person, chat_id, content, when_busy="inject"))
    [waits] = await queued(person, chat_id, 1)
    assert (waits["content"], waits["status"]) == (content, "injected")
    return sent


async def test_an_injected_one_comes_after_the_results_of_the_step(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    second = await injecting(user, chat_id, "second")
    [waits] = await queued(user, chat_id, 1)
    assert (await user.http.delete(f"/chats/{chat_id}/queued/{waits['id']}")).status_code == 409
    tools.let_go()
    events = await first
    assert await second == events
    assert [event.data["message_ids"] for event in events if event.name == "injected"] == [[waits["id"]]]
    names = [event.name for event in events]
    assert names.index("tool_end") < names.index("injected")
    chat = await get_chat(user, chat_id)
    assert [role for role, _ in said(chat)] == ["user", "assistant", "tool", "user", "assistant"]
    assert said(chat)[3:] == [("user", "second"), ("assistant", "Second answer.")]
    assert chat["messages"][3]["id"] == waits["id"]
    assert chat["queued"] == []
    assert joined(await reread(user, chat_id, chat["last_turn"]["channel_id"])) == joined(events)


async def test_an_injected_one_is_answered_after_what_would_have_been_the_last_answer(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    chat_id = await open_chat(user, await an_agent(declare))
    told, more = asyncio.Event(), [TextDelta("A "), TextDelta("long "), TextDelta("answer.")]
    model = Model([*more[:2], told, more[2], Answer("A long answer.")], [*more[2:], Answer("answer.")])
    async with working(with_model(runtime, model)):
        first = asyncio.create_task(stream(user, chat_id, "go"))
        while not model.requests:
            await asyncio.sleep(0.01)
        body: Json = {"content": "second", "when_busy": "inject"}
        sent = asyncio.create_task(user.http.post(f"/chats/{chat_id}/messages", json=body, timeout=60))
        await queued(user, chat_id, 1)
        told.set()
        answer = (await sent).json()
        events = await first
    assert (answer["content"], answer["status"]) == ("answer.", "injected")
    assert events[-1].data["status"] == "completed"
    assert said(await get_chat(user, chat_id)) == [
        *[("user", "go"), ("assistant", "A long answer.")],
        *[("user", "second"), ("assistant", "answer.")],
    ]
    for place, event in enumerate(events):  # every one is a place to read on from
        read = await reread(user, chat_id, answer["channel_id"], headers={"last-event-id": event.id})
        assert joined(read) == joined(events[place + 1 :])


async def test_one_that_is_sent_again_with_its_key_is_still_an_injected_one(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    path, headers = f"/chats/{chat_id}/messages", {"Idempotency-Key": "once"}
    body: Json = {"content": "second", "when_busy": "inject"}
    sent = asyncio.create_task(user.http.post(path, json=body, headers=headers, timeout=60))
    await queued(user, chat_id, 1)
    again = asyncio.create_task(user.http.post(path, json=body, headers=headers, timeout=60))
    tools.let_go()
    once, twice = await asyncio.gather(sent, again)
    assert (once.json()["status"], once.json()["content"]) == ("injected", "Second answer.")
    assert twice.json() == once.json()
    streamed = await user.http.post(f"{path}/stream", json=body, headers=headers, timeout=60)
    assert streamed.headers["x-message-status"] == "injected"
    assert parse(streamed.text)[-1].data["status"] == "completed"
    await first
    assert [content for role, content in said(await get_chat(user, chat_id)) if role == "user"] == ["look", "second"]


async def test_what_is_injected_before_the_turn_begins_is_heard_with_it(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    chat_id, first = await unworked(user, await an_agent(declare))
    second = asyncio.create_task(stream(user, chat_id, "second", when_busy="inject"))
    async with asyncio.timeout(30):
        while len(said(await get_chat(user, chat_id))) < 2:
            await asyncio.sleep(0.01)
    async with working(runtime):
        assert [text_of(events) for events in await asyncio.gather(first, second)] == ["Second answer."] * 2
    assert [role for role, _ in said(await get_chat(user, chat_id))] == ["user", "user", "assistant"]


async def test_what_was_injected_stays_said_when_the_turn_is_stopped(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    second = await injecting(user, chat_id, "second")
    await user.http.post(f"/chats/{chat_id}/stop")
    for events in await asyncio.gather(first, second):
        assert events[-1].data["status"] == "cancelled"
    chat = await get_chat(user, chat_id)
    assert [role for role, _ in said(chat)] == ["user", "assistant", "tool", "user"]
    assert chat["queued"] == []
    assert text_of(await stream(user, chat_id, "third")) == "Third answer."


async def test_what_is_injected_waits_with_the_turn_for_the_users_decision(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    rules: list[Json] = [
        {"when": {"contains": "both"}, "call": [{"tool": "shop/look"}, {"tool": "shop/danger"}]},
        *ECHO,
    ]
    agent = await declare("both", rules, enabled_functions=["shop/look", "shop/danger"])
    chat_id, first = await calling(user, agent, tools, "both")
    second = await injecting(user, chat_id, "second")
    tools.let_go()
    events = await first
    assert await second == events
    [call] = [event.data["tool_call_id"] for event in events if event.name == "approval_required"]
    assert [one["status"] for one in await queued(user, chat_id, 1)] == ["injected"]
    decided = await user.http.post(f"/chats/{chat_id}/approve-tool/{call}", json={"approved": True})
    after = await reread(user, chat_id, decided.json()["channel_id"])
    assert [event.name for event in after][:3] == ["tool_start", "tool_end", "injected"]
    assert text_of([event for event in after if event.name == "message"]) == "Second answer."
    roles = [role for role, _ in said(await get_chat(user, chat_id))]
    assert roles == ["user", "assistant", "tool", "tool", "user", "assistant"]


@pytest.mark.parametrize("why", ["hooks", "structured", "another key"])
async def test_where_it_cannot_be_injected_it_is_queued(
    user: Person, admin: Person, declare: Declare, runtime: Runtime, app: FastAPI, why: str
) -> None:
    fields: Json = {}
    if why == "hooks":
        code = "def handler(input_data, context):\n    return {}\n"
        body = {"name": "see", "code": code, "input_schema": {}, "output_schema": {}}
        assert (await admin.http.post("/api/v1/functions", json=body)).status_code == 201
        fields = {"hooks": {"on_user_message": [{"function": "default/see", "async": True}]}}
    elif why == "structured":
        fields = {"output_schema": {"type": "object"}}
    chat_id, first = await unworked(user, await an_agent(declare, **fields))
    token = user.token
    if why == "another key":
        token = await make_key(runtime, user.id, "sinas.agents/*/*.chat:all", "sinas.chats.*:own")
    body = {"content": "second", "when_busy": "inject"}
    async with http_client(app, {"Authorization": f"Bearer {token}"}) as client:
        sent = asyncio.create_task(client.post(f"/chats/{chat_id}/messages/stream", json=body, timeout=60))
        assert [one["status"] for one in await queued(user, chat_id, 1)] == ["queued"]
        assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
        answer = await sent
    assert answer.headers["x-message-status"] == "queued"
    assert parse(answer.text)[-1].name == "error"
    await first

"""Turns that come to no answer say why, and the chat can go on."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import JsonValue
from sqlalchemy import func, select, text, update

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    Event,
    ModelRequest,
    ProviderConfig,
    ProviderError,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    Usage,
)
from sinas_server.chats.tables import TurnRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.providers.tables import UsageRow
from sinas_server.settings import Settings
from tests.chats.busy import begun
from tests.chats.conftest import CountingTools, Declare, Json, get_chat, open_chat, reread, stream, text_of, working
from tests.people import Person

Script = Sequence[Event | Exception | asyncio.Event]


class Model:
    """Answers what the test says, once for each request: events, an error to raise, or something to wait for."""

    def __init__(self, *answers: Script) -> None:
        self.answers: list[Script] = list(answers)
        self.requests: list[ModelRequest] = []

    async def stream(self, request: ModelRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        for event in self.answers.pop(0):
            if isinstance(event, Exception):
                raise event
            if isinstance(event, asyncio.Event):
                await event.wait()
            else:
                yield event

    @asynccontextmanager
    async def use(self, config: ProviderConfig) -> AsyncIterator["Model"]:
        yield self


def with_model(runtime: Runtime, model: Model) -> Runtime:
    changed: Any = model
    return dataclasses.replace(runtime, models=changed)


async def test_the_provider_is_asked_again_while_nothing_was_heard(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    model = Model([ProviderError("overloaded", retryable=True)], [TextDelta("Hi"), Answer("Hi")])
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, model)):
        assert text_of(await stream(user, chat_id, "go")) == "Hi"
    assert len(model.requests) == 2


async def test_a_failure_in_the_middle_ends_the_turn(user: Person, declare: Declare, runtime: Runtime) -> None:
    broken: Script = [TextDelta("Hal"), ProviderError("openai answered 500: it is broken", retryable=True)]
    model = Model(broken, [TextDelta("Better"), Answer("Better")], [ProviderError("bad key")])
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, model)):
        events = await stream(user, chat_id, "go")
        assert events[-1].name == "error"
        assert events[-1].data["error"] == "openai answered 500: it is broken"
        chat = await get_chat(user, chat_id)
        assert [message["role"] for message in chat["messages"]] == ["user"]
        assert chat["last_turn"]["status"] == "FAILED"
        assert chat["last_turn"]["error"] == "openai answered 500: it is broken"
        again = await reread(user, chat_id, chat["last_turn"]["channel_id"])
        assert again[-1].name == "error"
        assert text_of(await stream(user, chat_id, "again")) == "Better"
        failed = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "once more"})
        assert (failed.status_code, failed.json()["detail"]) == (502, "bad key")


async def test_an_answer_that_changes_after_a_crash_begins_again(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    lost = ConnectionError("the server went away")
    model = Model([TextDelta("Once upon"), lost], [TextDelta("Twice"), Answer("Twice")])
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, model)):
        events = await stream(user, chat_id, "go")
    assert [event.name for event in events] == ["message", "restart", "message", "done"]
    assert [event.id for event in events] == ["1-9", "1-10", "1-15", "2-1"]
    assert "content" not in events[1].data
    assert text_of(events) == "Twice"
    chat = await get_chat(user, chat_id)
    assert chat["messages"][-1]["content"] == "Twice"
    channel = chat["last_turn"]["channel_id"]
    for last_id, left in (("1-9", "Twice"), ("1-10", "Twice"), ("1-12", "ice")):
        assert text_of(await reread(user, chat_id, channel, last_id=last_id)) == left


async def test_reasoning_is_sent_only_to_those_who_ask(user: Person, declare: Declare, runtime: Runtime) -> None:
    said: Script = [
        ThinkingDelta("Hm. "),
        TextDelta("A"),
        ThinkingDelta("So."),
        TextDelta("B"),
        Answer("AB", thinking="Hm. So."),
    ]
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, Model(said, list(said)))):
        plain = await stream(user, chat_id, "go")
        asked = await stream(user, chat_id, "go", include_thinking=True)
    assert not any("thinking" in event.data for event in plain)
    assert [event.data.get("thinking") or event.data["content"] for event in asked[:-1]] == ["Hm. ", "A", "So.", "B"]
    assert text_of(asked) == "AB"
    chat = await get_chat(user, chat_id)
    channel = chat["last_turn"]["channel_id"]
    assert [(e.id, e.data) for e in await reread(user, chat_id, channel)] == [(e.id, e.data) for e in asked]


async def test_a_structured_answer_is_one_event_and_meets_its_schema(
    user: Person, declare: Declare, worker: None
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    good = await declare("right", default='{"n": 123456789}', output_schema=schema)
    chat_id = await open_chat(user, good)
    events = await stream(user, chat_id, "go")
    assert [event.name for event in events] == ["message", "done"]
    assert events[0].data["content"] == '{"n": 123456789}'
    channel = (await get_chat(user, chat_id))["last_turn"]["channel_id"]
    assert await reread(user, chat_id, channel) == events
    for name, answer, reason in (("text", "Hello", "not JSON"), ("wrong", '{"n": "x"}', "does not meet")):
        chat_id = await open_chat(user, await declare(name, default=answer, output_schema=schema))
        events = await stream(user, chat_id, "go")
        assert [event.name for event in events] == ["error"]
        assert reason in events[0].data["error"]


async def test_calls_the_model_got_wrong_are_explained_to_it(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    calls = (
        ToolCall("x", "nothing__here", "{}"),
        ToolCall("x", "shop__look", "{broken"),
        ToolCall("", "shop__look", "[]"),
        ToolCall("a/b", "shop__look", '{"n": 1}'),
    )
    model = Model([Answer("", calls)], [TextDelta("Ok\x00"), Answer("Ok\x00")])
    chat_id = await open_chat(user, await declare("plain", enabled_functions=["shop/look"]))
    async with working(with_model(runtime, model)):
        events = await stream(user, chat_id, "go")
    results = [m["content"] for m in (await get_chat(user, chat_id))["messages"] if m["role"] == "tool"]
    assert "no tool named 'nothing__here'" in results[0]
    assert results[1] == results[2] == "Error: the arguments must be a JSON object"
    assert len(tools.ran) == 1
    ids = [event.data["tool_call_id"] for event in events if event.name == "tool_start"]
    assert len(set(ids)) == 4
    assert all(id_ and "/" not in id_ for id_ in ids)
    assert text_of(events) == "Ok\ufffd"


async def test_ids_that_providers_repeat_are_told_apart(user: Person, declare: Declare, runtime: Runtime) -> None:
    call = ToolCall("call_0", "shop__look", '{"n": 1}')
    model = Model([Answer("", (call, call))], [Answer("", (call,))], [TextDelta("Ok"), Answer("Ok")])
    first = await open_chat(user, await declare("plain", enabled_functions=["shop/look"]))
    async with working(with_model(runtime, model)):
        await stream(user, first, "go")
        model.answers = [[Answer("", (call,))], [TextDelta("Ok"), Answer("Ok")]]
        second = await open_chat(user, "default/plain")
        await stream(user, second, "go")
    shown = [m["tool_call_id"] for m in (await get_chat(user, first))["messages"] if m["role"] == "tool"]
    assert shown[0] == "call_0"
    assert len(set(shown)) == 3
    sent = model.requests[2].messages
    assert {m.id for message in sent for m in getattr(message, "tool_calls", ())} == set(shown)
    other = [m["tool_call_id"] for m in (await get_chat(user, second))["messages"] if m["role"] == "tool"]
    assert other == ["call_0"]


async def test_an_agent_that_calls_tools_for_ever_is_ended(user: Person, declare: Declare, runtime: Runtime) -> None:
    rules = [
        {"when": {"contains": "go"}, "call": [{"tool": "shop/look"}]},
        {"when": {"after_tool": "shop/look"}, "call": [{"tool": "shop/look"}]},
    ]
    few = dataclasses.replace(runtime, settings=runtime.settings.model_copy(update={"max_tool_iterations": 3}))
    chat_id = await open_chat(user, await declare("endless", rules, enabled_functions=["shop/look"]))
    async with working(few):
        events = await stream(user, chat_id, "go")
    assert "3 times in a row" in events[-1].data["error"]
    assert len([event for event in events if event.name == "tool_end"]) == 3


async def test_a_turn_has_a_time_limit_across_attempts(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    tools.hold = asyncio.Event()
    rules = [{"when": {"contains": "go"}, "call": [{"tool": "shop/look"}]}]
    agent = await declare("slow", rules, enabled_functions=["shop/look"], default_job_timeout=6000)
    chat_id = await open_chat(user, agent, job_timeout=600)
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    async with working(runtime, name="first"):
        while not tools.ran:
            await asyncio.sleep(0.01)
    await runtime.database.rows(update(TurnRow).values(worked_seconds=TurnRow.worked_seconds + 599.9))
    async with working(runtime, name="second"):
        events = await streaming
    assert events[-1].data["error"] == "the turn took longer than 600 seconds"
    messages = (await get_chat(user, chat_id))["messages"]
    assert messages[-1]["role"] == "tool"
    assert "took longer" in messages[-1]["content"]


async def test_a_turn_that_kills_its_workers_is_given_up(user: Person, declare: Declare, runtime: Runtime) -> None:
    model = Model(*[[ConnectionError("gone")] for _ in range(20)])
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, model)):
        events = await stream(user, chat_id, "go")
    assert "gave up" in events[-1].data["error"]
    assert len(model.requests) == 10


async def test_a_bug_ends_the_turn_and_says_little(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, Model([ValueError("secret detail")]))):
        events = await stream(user, chat_id, "go")
    assert events[-1].data["error"].startswith("internal error in turn ")
    assert "secret" not in events[-1].data["error"]


async def test_what_cannot_be_prepared_is_said(user: Person, admin: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await declare("prompted", system_prompt="For {{ company }}"))
    assert "'company' is undefined" in (await stream(user, chat_id, "go"))[-1].data["error"]
    chat_id = await open_chat(user, "default/prompted", input={"company": "us"})
    assert text_of(await stream(user, chat_id, "go")) == "Hello, I am the agent."


async def test_rights_are_those_of_the_moment(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    while (await get_chat(user, chat_id))["active_channel_id"] is None:
        await asyncio.sleep(0.01)
    async with runtime.database.unit() as db:
        await db.execute(text("UPDATE users SET is_active = false WHERE id = :id"), {"id": user.id})
    async with working(runtime):
        events = await streaming
    assert "not valid any more" in events[-1].data["error"]


async def test_another_provider_answers_where_the_first_fails_before_its_answer(
    user: Person, admin: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    good = {"name": "spare", "provider_type": "scripted", "config": {"default": "The spare one."}}
    assert (await admin.http.post("/api/v1/llm-providers", json=good)).status_code == 201
    asleep = {**good, "name": "asleep"}
    assert (await admin.http.post("/api/v1/llm-providers", json=asleep)).status_code == 201
    off = await admin.http.put("/api/v1/llm-providers/asleep", json={"is_active": False})
    assert off.status_code == 200, off.text
    dead = {"name": "dead", "provider_type": "openai", "api_key": "k", "api_endpoint": "http://127.0.0.1:9/v1"}
    made = await admin.http.post("/api/v1/llm-providers", json={**dead, "default_model": "m"})
    assert made.status_code == 201, made.text
    body = {"name": "steady", "llm_provider_id": made.json()["id"], "fallback_providers": ["dead", "asleep", "spare"]}
    assert (await admin.http.post("/api/v1/agents", json=body)).status_code == 201
    chat_id = await open_chat(user, "default/steady")
    assert text_of(await stream(user, chat_id, "go")) == "The spare one."
    query = select(UsageRow.provider, UsageRow.failed).order_by(UsageRow.id)
    asked = [tuple(row) for row in await runtime.database.rows(query)]
    assert asked == [("dead", True), ("dead", True), ("spare", False)]
    wrong = await admin.http.post("/api/v1/agents", json={"name": "x", "fallback_providers": ["nobody"]})
    assert wrong.status_code == 422
    assert "nobody" in wrong.text


async def test_no_other_provider_goes_on_with_an_answer_that_has_begun(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    await declare("other")
    agent = await declare("plain", fallback_providers=["for-other"])
    model = Model([TextDelta("Hal"), ProviderError("it is broken")], [ProviderError("bad key")], [Answer("Other")])
    chat_id = await open_chat(user, agent)
    async with working(with_model(runtime, model)):
        assert (await stream(user, chat_id, "go"))[-1].name == "error"
        assert text_of(await stream(user, chat_id, "go")) == "Other"


async def test_a_wrong_structured_answer_is_corrected_once(user: Person, declare: Declare, runtime: Runtime) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    agent = await declare("typed", output_schema=schema)
    bad, worse, good = '{"n": "x"}', "Sorry", '{"n": 1}'
    answers: list[Script] = [[Answer(text, usage=Usage(5, 1))] for text in (bad, good, bad, worse)]
    model = Model(*answers)
    chat_id = await open_chat(user, agent)
    async with working(with_model(runtime, model)):
        events = await stream(user, chat_id, "go")
        assert [(e.name, e.data.get("content")) for e in events] == [("message", good), ("done", None)]
        chat = await get_chat(user, chat_id)
        assert [message["content"] for message in chat["messages"]] == ["go", good]
        told = str(model.requests[1].messages[-1])
        assert "does not meet its output_schema" in told
        assert model.requests[1].messages[-2] == AssistantMessage(bad)
        events = await stream(user, chat_id, "go")
        assert [event.name for event in events] == ["error"]
        assert "not JSON" in events[0].data["error"]
    usage = [row.usage for row in await runtime.database.rows(select(TurnRow.usage).order_by(TurnRow.created_at))]
    assert [(used["calls"], used["prompt_tokens"]) for used in usage] == [(2, 10), (2, 10)]
    assert (await runtime.database.rows(select(func.sum(UsageRow.prompt_tokens))))[0][0] == 20


async def test_a_conversation_longer_than_the_models_window_loses_its_oldest_exchanges(
    user: Person, admin: Person, declare: Declare, runtime: Runtime
) -> None:
    provider: Json = {"name": "small", "provider_type": "openai", "api_key": "k", "default_model": "m"}
    path = "/api/v1/llm-providers"
    refused = await admin.http.post(path, json={**provider, "config": {"context_window": "8k"}})
    assert refused.status_code == 422
    made = await admin.http.post(path, json={**provider, "config": {"context_window": 700}})
    chat_id = await open_chat(user, await declare("plain", max_tokens=300))
    changed = await admin.http.put("/api/v1/agents/default/plain", json={"llm_provider_id": made.json()["id"]})
    assert changed.status_code == 200, changed.text
    model = Model(*[[Answer(f"Answer {n}")] for n in range(3)])
    async with working(with_model(runtime, model)):
        for n in range(3):
            await stream(user, chat_id, f"{n}" * 1000)
    said = [[type(message).__name__ for message in request.messages] for request in model.requests]
    assert said == [["UserMessage"], ["UserMessage"], ["UserMessage"]]
    assert "2" * 1000 in str(model.requests[2].messages)
    assert len((await get_chat(user, chat_id))["messages"]) == 6


class TestTimeLimit:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"agent_job_timeout": 77.0})

    @pytest.mark.parametrize(
        ("agent", "chat", "limit"), [({}, {}, 77), ({"default_job_timeout": 66}, {}, 66), ({}, {"job_timeout": 55}, 55)]
    )
    async def test_is_the_operators_unless_the_agent_or_the_chat_has_one(
        self,
        user: Person,
        declare: Declare,
        runtime: Runtime,
        agent: dict[str, JsonValue],
        chat: dict[str, JsonValue],
        limit: int,
    ) -> None:
        chat_id = await open_chat(user, await declare("brief", default="Yes.", **agent), **chat)
        streaming = asyncio.create_task(stream(user, chat_id, "go"))
        await begun(user, chat_id)
        assert [row.timeout for row in await runtime.database.rows(select(TurnRow.timeout))] == [limit]
        async with working(runtime):
            assert text_of(await streaming) == "Yes."

"""What providers are sent on the wire over a whole chat: thinking they gave before, and a beginning that stays."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
from pydantic import JsonValue

from sinas_server.kernel.runtime import Runtime
from tests.chats.busy import in_a_call
from tests.chats.conftest import CountingTools, Json, get_chat, open_chat, stream, text_of, working
from tests.fakes.llm_server import Call, FakeLLM, Provider, Reply
from tests.people import Person

PROVIDERS: list[Provider] = ["openai", "anthropic", "mistral", "ollama"]
THOUGHT = "I had better look first."
TOOLS = ["shop/look", "shop/count", "shop/danger", "shop/again"]
Made = Callable[..., Awaitable[str]]


@pytest.fixture
async def fake() -> AsyncIterator[FakeLLM]:
    async with FakeLLM() as server:
        yield server


@pytest.fixture
def declare(admin: Person, fake: FakeLLM) -> Made:
    """Creates an agent over a provider of a type: `await declare("anthropic", **fields of the agent)`."""

    async def create(provider: Provider, config: JsonValue = None, **fields: JsonValue) -> str:
        body = {"name": f"of-{provider}", "provider_type": provider, "default_model": "fake-large", "api_key": "key"}
        made = await admin.http.post(
            "/api/v1/llm-providers", json={**body, "api_endpoint": fake.endpoint(provider), "config": config or {}}
        )
        assert made.status_code == 201, made.text
        agent = {"name": provider, "llm_provider_id": made.json()["id"], "enabled_functions": TOOLS, **fields}
        made = await admin.http.post("/api/v1/agents", json=agent)
        assert made.status_code == 201, made.text
        return f"default/{provider}"

    return create


def thinking(**more: object) -> Reply:
    """An answer that was thought about, and calls a tool."""
    call = Call(name="shop__look", arguments='{"n": 1}')
    return Reply.model_validate({"thinking": THOUGHT, "redacted": "b3BhcXVl", "tool_calls": [call], **more})


def thoughts(body: Json) -> int:
    """How often a request holds the thought."""
    return json.dumps(body["messages"]).count(THOUGHT)


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_thinking_outlives_the_worker_and_goes_to_its_provider_only(
    runtime: Runtime,
    admin: Person,
    user: Person,
    fake: FakeLLM,
    declare: Made,
    tools: CountingTools,
    provider: Provider,
) -> None:
    other: Provider = "openai" if provider != "openai" else "anthropic"
    await declare(other)
    agent = await declare(provider, fallback_providers=[f"of-{other}"])
    chat_id = await open_chat(user, agent)
    fake.replies += [thinking(text="Wait."), Reply(text="It is 1.", thinking=THOUGHT)]
    tools.hold = asyncio.Event()
    async with working(runtime, name="first"):
        first = asyncio.create_task(stream(user, chat_id, "look", include_thinking=True))
        while not tools.ran:
            await asyncio.sleep(0.01)
    tools.hold.set()
    async with working(runtime, name="second"):
        events = await first
        assert text_of(events) == "It is 1."
        said = "".join(event.data.get("thinking", "") for event in events if event.name == "message")
        assert said == THOUGHT * 2
        await stream(user, chat_id, "and now?")
        assert [thoughts(request.body) for request in fake.requests] == [0, 1, 2]
        if provider == "anthropic":
            blocks = fake.requests[2].body["messages"][1]["content"]
            assert [block["type"] for block in blocks] == ["thinking", "redacted_thinking", "text", "tool_use"]
            assert (blocks[0]["signature"], blocks[1]["data"]) == ("c2lnbmF0dXJl", "b3BhcXVl")
        fake.replies += [Reply(status=400)]
        await stream(user, chat_id, "and then?")
        refused, taken_over = (request.body for request in fake.requests[3:])
        assert (thoughts(refused), thoughts(taken_over)) == (2, 0)
        assert "Wait." in json.dumps(taken_over)
    shown = json.dumps(await get_chat(user, chat_id))
    assert THOUGHT not in shown


def without_marks(value: JsonValue) -> JsonValue:
    """A request without Anthropic's marks, which are no part of what is compared."""
    if isinstance(value, dict):
        return {key: without_marks(item) for key, item in value.items() if key != "cache_control"}
    return [without_marks(item) for item in value] if isinstance(value, list) else value


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_each_request_begins_with_the_one_before_byte_by_byte(
    user: Person, fake: FakeLLM, declare: Made, provider: Provider
) -> None:
    agent = await declare(
        provider,
        system_prompt="You help {{ who }}.",
        input_schema={"type": "object", "properties": {"who": {"type": "string"}}},
        initial_messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    )
    chat_id = await open_chat(user, agent, input={"who": "Ann"})
    fake.replies += [thinking(), Reply(text="One."), thinking(), Reply(text="Two.")]
    for said in ("first", "second", "third"):
        await stream(user, chat_id, said)
    assert len(fake.requests) == 5
    sent = [without_marks(request.body) for request in fake.requests]
    asked = json.dumps(fake.requests[0].body)
    places = [asked.index(part) for part in ('"Hi"', '"Hello."', '"first"')]
    assert places == sorted(places), "the initial messages come before what was said"
    assert "You help Ann." in asked
    for before, after in pairwise(sent):
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        for name in before.keys() | after.keys():
            earlier, later = json.dumps(before[name]), json.dumps(after[name])
            if name == "messages":
                assert later.startswith(earlier.removesuffix("]"))
            else:
                assert later == earlier
    if provider == "anthropic":
        assert all('"cache_control"' in json.dumps(request.body["messages"][-1]) for request in fake.requests)


@pytest.mark.parametrize("limit", ["messages", "tokens"])
async def test_a_turn_longer_than_the_limit_keeps_all_that_the_user_said_and_no_result_without_its_call(
    runtime: Runtime, user: Person, fake: FakeLLM, declare: Made, tools: CountingTools, limit: str
) -> None:
    few = runtime.settings.model_copy(update={"max_history_messages": 3 if limit == "messages" else 100})
    config = {"context_window": 4500} if limit == "tokens" else {}  # of which the answer takes 4096
    chat_id = await open_chat(user, await declare("openai", config=config, max_tokens=4096))
    fake.replies += [
        Reply(tool_calls=[Call(name="shop__look", arguments=json.dumps({"n": n, "of": "x" * 2000}))]) for n in range(9)
    ]
    tools.hold = asyncio.Event()
    async with working(dataclasses.replace(runtime, settings=few)):
        events = asyncio.create_task(stream(user, chat_id, "the question"))
        await in_a_call(tools)
        body = {"content": "one thing more", "when_busy": "inject"}
        sent = asyncio.create_task(user.http.post(f"/chats/{chat_id}/messages", json=body, timeout=60))
        while not (await get_chat(user, chat_id))["queued"]:
            await asyncio.sleep(0.01)
        tools.hold.set()
        await events
        await sent
    assert len(fake.requests) == 10
    steps = []
    for request in fake.requests[1:]:
        messages = request.body["messages"]
        said = [message["content"] for message in messages if message["role"] == "user"]
        assert [json.dumps(content).count("question") for content in said] == [1, 0]
        called = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
        assert called == [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        steps.append(len(called))
    assert max(steps) < 5
    assert min(steps) >= 1

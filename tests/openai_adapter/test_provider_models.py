"""Models of providers, asked through the official SDK: everything the client sends goes through, and comes back."""

import json
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.fakes.llm_server import Call, FakeLLM, Provider, Reply
from tests.openai_adapter.conftest import URL, Provide
from tests.people import Person

HELLO: Any = [{"role": "user", "content": "Hello"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
JSON = {"type": "json_object"}
OTHER: Any = {"type": "function", "function": {"name": "other"}}


async def test_an_answer(provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    fake.replies.append(Reply(text="Hi there.", prompt_tokens=20, completion_tokens=5, cached_tokens=8))
    answer = await admin_sdk.chat.completions.create(model="main/fake-large", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.model == "main/fake-large"
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.content) == (0, "stop", "Hi there.")
    assert choice.message.tool_calls is None
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (20, 5, 25)
    assert answer.usage.prompt_tokens_details.cached_tokens == 8
    assert fake.requests[0].headers["authorization"] == "Bearer sk-provider-key"


async def test_everything_the_client_sets_reaches_the_provider(
    provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI
) -> None:
    await provide("main")
    await admin_sdk.chat.completions.create(
        model="main/other",
        messages=[{"role": "system", "content": "Be brief."}, *HELLO],
        temperature=0.25,
        top_p=0.5,
        stop=["END"],
        max_completion_tokens=99,
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        tools=[WEATHER, OTHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
    )
    sent = fake.requests[0].body
    assert sent["model"] == "other"
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    expected = {"temperature": 0.25, "top_p": 0.5, "stop": ["END"], "seed": 7}
    expected |= {"presence_penalty": 0.5, "frequency_penalty": -0.5, "parallel_tool_calls": False}
    assert {key: sent[key] for key in expected} == expected
    assert sent.get("max_completion_tokens", sent.get("max_tokens")) == 99
    assert sent["tools"][0]["function"]["name"] == "weather"
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_schemas_reach_the_provider_as_they_are(
    kind: Provider, provide: Provide, fake: FakeLLM, admin: Person
) -> None:
    await provide("main", kind)
    schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 1}}}
    loose = {"type": "function", "function": {"name": "loose", "parameters": schema, "strict": False, "secret": 1}}
    body = {"model": "main/fake-large", "messages": HELLO, "tools": [loose], "logit_bias": {"1": 2}}
    for asked in ({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}, JSON):
        answer = await admin.http.post(f"{URL}/chat/completions", json={**body, "response_format": asked})
        assert answer.status_code == 200, answer.text
    strict, anything = (request.body for request in fake.requests)
    assert strict["tools"][0]["function"] == {
        "name": "loose",
        "description": "",
        "parameters": schema,
        "strict": False,
    }, "and nothing that is not a field of ours"
    assert "logit_bias" not in strict
    assert strict["response_format"]["json_schema"] == {"name": "answer", "schema": schema, "strict": True}
    assert anything["response_format"] == JSON


async def test_a_stream(provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    fake.replies.append(Reply(text="One two three four five.", thinking="Hm.", pause=0.005, chunks=8))
    stream = await admin_sdk.chat.completions.create(
        model="main/fake-large", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "One two three four five."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 18
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_stream_without_usage_ends_with_done(provide: Provide, admin: Person) -> None:
    await provide("main")
    body = {"model": "main/fake-large", "messages": HELLO, "stream": True}
    answer = await admin.http.post(f"{URL}/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert not any("usage" in json.loads(event.removeprefix("data: ")) for event in events[:-1])


@pytest.mark.parametrize("kind", ["openai", "anthropic", "mistral", "ollama"])
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_of_the_client(
    kind: Provider, stream: bool, provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI
) -> None:
    await provide("main", kind)
    paris, rome = '{"city":"Paris, France, Europe"}', '{"city":"Rome"}'
    calls = [
        Call(name="weather", arguments=paris, id="call12345"),
        Call(name="weather", arguments=rome, id="call67890"),
    ]
    fake.replies.append(Reply(text="Looking.", tool_calls=calls, chunk_size=5))
    fake.replies.append(Reply(text="Sunny.", after_tool=True))
    asked: Any = {"model": "main/fake-large", "messages": HELLO, "tools": [WEATHER]}
    if stream:
        async with admin_sdk.chat.completions.stream(**asked) as events:
            first = (await events.get_final_completion()).choices[0]
    else:
        first = (await admin_sdk.chat.completions.create(**asked)).choices[0]
    assert first.finish_reason == "tool_calls"
    assert first.message.content == "Looking."
    assert first.message.tool_calls is not None
    made = [(call.id, call.function.name, call.function.arguments) for call in first.message.tool_calls]
    assert [arguments for _, _, arguments in made] == [paris, rome]
    assert [name for _, name, _ in made] == ["weather", "weather"]
    results = [{"role": "tool", "tool_call_id": call_id, "content": "18 degrees"} for call_id, _, _ in made]
    history = [*HELLO, first.message.model_dump(exclude_none=True), *results]
    answer = await admin_sdk.chat.completions.create(**{**asked, "messages": history})
    assert answer.choices[0].message.content == "Sunny."
    assert "18 degrees" in json.dumps(fake.requests[1].body["messages"][-1])


@pytest.mark.parametrize("kind", ["openai", "anthropic", "mistral", "ollama"])
@pytest.mark.parametrize(
    "image",
    [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
    ],
    ids=["openai's form", "anthropic's form"],
)
async def test_images_in_both_forms(
    image: dict[str, object], kind: Provider, provide: Provide, fake: FakeLLM, admin: Person
) -> None:
    await provide("main", kind)
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    answer = await admin.http.post(
        f"{URL}/chat/completions", json={"model": "main/fake-large", "messages": messages}, timeout=60
    )
    assert answer.status_code == 200, answer.text
    assert PIXEL in json.dumps(fake.requests[0].body["messages"])


class Human(BaseModel):
    name: str
    age: int


async def test_structured_output(provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    fake.default = Reply(text='{"name": "Ada", "age": 36}')
    answer = await admin_sdk.chat.completions.parse(model="main/fake-large", messages=HELLO, response_format=Human)
    assert answer.choices[0].message.parsed == Human(name="Ada", age=36)
    sent = fake.requests[0].body["response_format"]
    assert sent["json_schema"]["schema"]["required"] == ["name", "age"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "x"}]}, "messages.0.tool_call_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]},
            "messages.0.content.0.source",
        ),
    ],
)
async def test_what_cannot_be_honored_is_refused_by_name(
    more: dict[str, object], param: str, provide: Provide, fake: FakeLLM, admin: Person
) -> None:
    await provide("main")
    answer = await admin.http.post(
        f"{URL}/chat/completions", json={"model": "main/fake-large", "messages": HELLO, **more}
    )
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert fake.requests == []


@pytest.mark.parametrize(
    ("told", "status", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 502, "server_error"),
        (404, 400, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_of_the_provider(
    told: int, status: int, kind: str, stream: bool, provide: Provide, fake: FakeLLM, admin: Person
) -> None:
    await provide("main")
    fake.default = Reply(status=told, error="no {key} here")
    body = {"model": "main/fake-large", "messages": HELLO, "stream": stream}
    answer = await admin.http.post(f"{URL}/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["type"] == kind
    assert "sk-provider-key" not in answer.text


async def test_an_error_inside_a_stream(provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    fake.default = Reply(text="One two three four.", fail_after=3, error="overloaded", pause=0.05)
    stream = await admin_sdk.chat.completions.create(model="main/fake-large", messages=HELLO, stream=True)
    said = ""
    with pytest.raises(openai.APIError, match="overloaded"):
        async for chunk in stream:
            said += chunk.choices[0].delta.content or ""
    assert said and "One two three four.".startswith(said)


async def test_a_body_that_is_no_json_has_no_param(admin: Person) -> None:
    answer = await admin.http.post(
        f"{URL}/chat/completions", content=b"{bad", headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, None)
    assert answer.json()["error"]["message"].startswith("JSON decode error")


async def test_a_body_that_is_too_large_is_refused_in_the_same_shape(client: httpx2.AsyncClient) -> None:
    answer = await client.post(f"{URL}/chat/completions", content=b"x", headers={"content-length": str(1 << 30)})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"

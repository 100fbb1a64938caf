"""The adapters against a mock that nobody here wrote, so that our fake and our reading of it cannot err together."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any, cast

import httpx2
import pytest

from sinas_server.backends.llm import (
    AssistantMessage,
    LanguageModel,
    MediaPart,
    ProviderConfig,
    TextPart,
    ToolMessage,
    UserMessage,
)
from sinas_server.backends.llm.remote import RemoteModel
from tests.backends.llm.asking import KEY, WEATHER, ask, collect, failure, text, thinking
from tests.fakes.aimock import UnavailableError, aimock
from tests.fakes.llm_server import Provider
from tests.media import PDF, PNG, WAV, b64, data_url

Json = dict[str, Any]
ARGUMENTS = '{"city":"Köln","days":[1,2]}'
FIXTURES: list[dict[str, object]] = [
    {
        "match": {"userMessage": "greet"},
        "response": {
            "content": "Grüße aus Köln, 你好!",
            "usage": {"prompt_tokens": 9, "completion_tokens": 4, "input_tokens": 9, "output_tokens": 4},
        },
    },
    {
        "match": {"userMessage": "weather", "hasToolResult": False},
        "response": {
            "toolCalls": [
                {"id": "call_a", "name": "shop__weather", "arguments": ARGUMENTS},
                {"id": "call_b", "name": "shop__weather", "arguments": "{}"},
            ]
        },
    },
    {"match": {"userMessage": "weather", "toolResultContains": "grey"}, "response": {"content": "Grey skies."}},
    {
        "match": {"userMessage": "think"},
        "response": {"content": "42", "reasoning": "First the sum.", "reasoningSignature": "c2ln"},
    },
    {
        "match": {"userMessage": "ponder", "hasToolResult": False},
        "response": {
            "toolCalls": [{"id": "call_a", "name": "shop__weather", "arguments": ARGUMENTS}],
            "reasoning": "Ask the weather.",
            "reasoningSignature": "c2ln",
            "redactedThinking": ["b3BhcXVl"],
        },
    },
    {
        "match": {"userMessage": "ponder", "toolResultContains": "grey"},
        "response": {"content": "Grey.", "reasoning": "So it is grey.", "reasoningSignature": "bGFzdA=="},
    },
    {
        "match": {"userMessage": "limit"},
        "response": {"error": {"message": "Slow down a bit.", "type": "rate_limit_error"}, "status": 429},
    },
    {
        "match": {"userMessage": "refuse"},
        "response": {"error": {"message": "Not like this.", "type": "invalid_request_error"}, "status": 400},
    },
]


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with aimock(tmp_path_factory.mktemp("aimock"), FIXTURES) as url:
            yield url
    except UnavailableError as error:
        pytest.skip(f"aimock cannot be had: {error}")


# aimock cannot stream Mistral's tool calls; our own fake covers Mistral.
@pytest.fixture(params=["openai", "anthropic", "ollama"])
async def served(request: pytest.FixtureRequest, mock: str) -> AsyncIterator[tuple[Provider, LanguageModel]]:
    provider = cast(Provider, request.param)
    model = RemoteModel(ProviderConfig(provider, KEY, mock))
    yield provider, model
    await model.close()


async def test_text(served: tuple[Provider, LanguageModel]) -> None:
    events, answer = await collect(served[1], ask("greet me"))
    assert len(events) > 1
    assert text(events) == answer.text == "Grüße aus Köln, 你好!"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 4)
    assert answer.finish_reason == "stop"


async def test_a_turn_with_parallel_tools(served: tuple[Provider, LanguageModel]) -> None:
    _, model = served
    _, answer = await collect(model, ask("weather?", tools=(WEATHER,)))
    assert [(call.name, json.loads(call.arguments)) for call in answer.tool_calls] == [
        ("shop__weather", json.loads(ARGUMENTS)),
        ("shop__weather", {}),
    ]
    assert answer.finish_reason == "tool_calls"
    assert len({call.id for call in answer.tool_calls}) == 2
    stored = json.loads(json.dumps(answer.native))
    results = [ToolMessage(call.id, call.name, '{"sky": "grey"}') for call in answer.tool_calls]
    said = AssistantMessage(answer.text, answer.tool_calls, stored)
    events, final = await collect(model, ask("weather?", said, *results, tools=(WEATHER,)))
    assert text(events) == final.text == "Grey skies."


async def test_thinking_and_its_replay(served: tuple[Provider, LanguageModel]) -> None:
    provider, model = served
    events, answer = await collect(model, ask("think"))
    assert answer.text == "42"
    if provider != "anthropic":
        return
    assert thinking(events) == answer.thinking == "First the sum."
    bodies = watched(model)
    await collect(model, ask("think", AssistantMessage("42", (), answer.native), "greet"))
    assert "c2ln" in json.dumps(bodies)


def watched(model: LanguageModel) -> list[Json]:
    """The bodies of the requests that a model sends from now on; aimock's journal keeps them in a form of its own."""
    assert isinstance(model, RemoteModel)
    bodies: list[Json] = []

    async def note(request: httpx2.Request) -> None:
        bodies.append(json.loads(request.content))

    model._client().event_hooks = {"request": [note]}
    return bodies


async def pondered(model: LanguageModel) -> Json:
    """What a provider is sent two steps and another turn after it began to think about something."""
    bodies = watched(model)
    request = replace(ask("ponder", tools=(WEATHER,)), model="gpt-5")
    _, first = await collect(model, request)
    (call,) = first.tool_calls
    said = AssistantMessage(first.text, first.tool_calls, json.loads(json.dumps(first.native)))
    steps = (*request.messages, said, ToolMessage(call.id, call.name, "grey"))
    _, last = await collect(model, replace(request, messages=steps))
    assert last.text == "Grey."
    answered = AssistantMessage(last.text, (), json.loads(json.dumps(last.native)))
    await collect(model, replace(request, messages=(*steps, answered, UserMessage((TextPart("greet"),)))))
    return bodies[-1]


async def test_thinking_around_calls(served: tuple[Provider, LanguageModel]) -> None:
    provider, model = served
    first, last = [said for said in (await pondered(model))["messages"] if said["role"] == "assistant"]
    if provider == "anthropic":
        redacted = {"type": "redacted_thinking", "data": "b3BhcXVl"}
        thought = {"type": "thinking", "thinking": "Ask the weather.", "signature": "c2ln"}
        assert sorted(first["content"][:2], key=lambda block: str(block["type"])) == [redacted, thought]
        assert first["content"][2]["type"] == "tool_use"
        assert last["content"][0]["signature"] == "bGFzdA=="
    elif provider == "openai":
        assert first["reasoning_content"] == "Ask the weather."
        assert last["reasoning_content"] == "So it is grey."
    else:  # aimock writes it in OpenAI's field, not Ollama's, so that it goes back as text
        assert "Ask the weather." in first["content"]
        assert "So it is grey." in last["content"]


async def test_reasoning_items_of_the_responses_api(mock: str) -> None:
    model = RemoteModel(ProviderConfig("openai", KEY, mock, {"api": "responses"}))
    body = await pondered(model)
    assert body["store"] is False
    items = [item for item in body["input"] if item.get("type") not in (None, "message")]
    assert [item["type"] for item in items] == ["reasoning", "function_call", "function_call_output", "reasoning"]
    assert all(item["encrypted_content"] for item in items if item["type"] == "reasoning")
    assert items[1]["call_id"] == items[2]["call_id"]
    await model.close()


async def test_errors(served: tuple[Provider, LanguageModel]) -> None:
    provider, model = served
    overloaded = await failure(model, ask("limit"))
    assert (overloaded.status, overloaded.retryable) == (429, True)
    assert str(overloaded) == f"{provider} answered 429: Slow down a bit."
    refused = await failure(model, ask("refuse"))
    assert (refused.status, refused.retryable) == (400, False)


PARTS: dict[str, MediaPart] = {
    "image": MediaPart("image", "image/png", PNG),
    "image url": MediaPart("image", "image/png", url="https://example.com/cat.png"),
    "audio": MediaPart("audio", "audio/wav", WAV),
    "pdf": MediaPart("file", "application/pdf", PDF, filename="bill.pdf"),
    "text": MediaPart("file", "text/csv", b"a;b", filename="orders.csv"),
}
SIGNS = {"image": b64(PNG), "image url": "cat.png", "audio": b64(WAV), "pdf": b64(PDF), "text": "a;b"}
TAKES: dict[Provider, set[str]] = {
    "openai": set(PARTS),
    "anthropic": {"image", "image url", "pdf", "text"},
    "ollama": {"image", "text"},
}


async def test_media_beside_text(served: tuple[Provider, LanguageModel]) -> None:
    """The mock finds the text of a message that holds media, so it understands the message."""
    provider, model = served
    bodies = watched(model)
    for name in sorted(TAKES[provider]):
        _, answer = await collect(model, ask(UserMessage((TextPart("greet me"), PARTS[name]))))
        assert answer.text == "Grüße aus Köln, 你好!", name
        assert SIGNS[name] in json.dumps(bodies[-1]), name


async def test_media_in_the_responses_api(mock: str) -> None:
    model = RemoteModel(ProviderConfig("openai", KEY, mock, {"api": "responses"}))
    bodies = watched(model)
    by_url = MediaPart("file", "application/pdf", url="https://example.com/bill.pdf")
    parts = (PARTS["image"], PARTS["image url"], PARTS["pdf"], by_url)
    _, answer = await collect(model, ask(UserMessage((TextPart("greet me"), *parts))))
    assert answer.text == "Grüße aus Köln, 你好!"
    sent = [part for item in bodies[0]["input"] for part in item["content"] if isinstance(part, dict)]
    assert [part["type"] for part in sent] == ["input_text", "input_image", "input_image", "input_file", "input_file"]
    assert (sent[1]["image_url"], sent[2]["image_url"]) == (data_url("image/png", PNG), "https://example.com/cat.png")
    assert (sent[3]["file_data"], sent[4]["file_url"]) == (data_url("application/pdf", PDF), by_url.url)
    refused = await failure(model, ask(UserMessage((PARTS["audio"],))))
    assert "openai does not take audio content" in str(refused)
    await model.close()


async def test_models(served: tuple[Provider, LanguageModel]) -> None:
    assert await served[1].list_models()

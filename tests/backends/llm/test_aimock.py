"""The adapters against a mock that nobody here wrote, so that our fake and our reading of it cannot err together."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import cast

import httpx2
import pytest

from sinas_server.backends.llm import AssistantMessage, LanguageModel, ProviderConfig, ToolMessage
from sinas_server.backends.llm.open import open_model
from tests.backends.llm.asking import KEY, WEATHER, ask, collect, failure, text, thinking
from tests.fakes.aimock import UnavailableError, aimock
from tests.fakes.llm_server import Provider

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
    model = open_model(ProviderConfig(provider, KEY, mock))
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


async def test_thinking_and_its_replay(served: tuple[Provider, LanguageModel], mock: str) -> None:
    provider, model = served
    events, answer = await collect(model, ask("think"))
    assert answer.text == "42"
    if provider != "anthropic":
        return
    assert thinking(events) == answer.thinking == "First the sum."
    await collect(model, ask("think", AssistantMessage("42", (), answer.native), "greet"))
    async with httpx2.AsyncClient() as client:
        journal = (await client.get(f"{mock}/__aimock/journal")).json()
    assert "c2ln" in json.dumps(journal)


async def test_errors(served: tuple[Provider, LanguageModel]) -> None:
    provider, model = served
    overloaded = await failure(model, ask("limit"))
    assert (overloaded.status, overloaded.retryable) == (429, True)
    assert str(overloaded) == f"{provider} answered 429: Slow down a bit."
    refused = await failure(model, ask("refuse"))
    assert (refused.status, refused.retryable) == (400, False)


async def test_models(served: tuple[Provider, LanguageModel]) -> None:
    assert await served[1].list_models()

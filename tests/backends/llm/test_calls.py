"""Names and ids of tool calls on the wire: what each provider takes, whatever the history holds."""

import re
from dataclasses import replace

import pytest

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    LanguageModel,
    ModelRequest,
    ProviderConfig,
    ToolCall,
    ToolMessage,
    ToolSpec,
)
from sinas_server.backends.llm.remote import RemoteModel
from sinas_server.kernel.tool import tool_name
from tests.backends.llm.asking import KEY, PROVIDERS, WEATHER, ask, collect
from tests.backends.llm.test_providers import calls_sent, results_sent
from tests.fakes.llm_rules import refusal
from tests.fakes.llm_server import Call, FakeLLM, Provider, Reply

LONG = tool_name("team one", "w" * 255)
"""What a name with a blank and of the greatest length is sent as."""
IDS = {
    "of OpenAI": "call_Wq1sTn2bVx8YdE0zRkM4uPja",
    "of OpenAI, made unique": "call_Wq1sTn2bVx8YdE0zRkM4uPja-0198f0aa-12-3",
    "of Anthropic": "toolu_01T1x1fJ34qAmk2tNTrN7Up6",
    "of Mistral": "D681PevKs",
    "of a server that counts by name": "functions.shop__weather:0",
    "of a server with uuids": "0d5f2c9e-9a0b-4f6e-8f0e-3d1c7a9b5e21",
    "very long": "x" * 128,
}


def conversation(*calls: ToolCall, answer: Answer | None = None) -> ModelRequest:
    """A history with these calls and their results, and a question after it."""
    said = AssistantMessage(answer.text if answer else "", calls, answer.native if answer else None)
    results = [ToolMessage(call.id, call.name, f"result {index}") for index, call in enumerate(calls)]
    return ask("weather?", said, *results, tools=(WEATHER,))


@pytest.mark.parametrize("written", IDS)
async def test_an_id_of_any_provider(fake: FakeLLM, model: LanguageModel, provider: Provider, written: str) -> None:
    calls = [ToolCall(IDS[written], "shop__weather", "{}"), ToolCall(IDS[written][:-1] + "Z", "shop__weather", "{}")]
    await collect(model, conversation(*calls))  # the fake refuses what the provider does
    sent = calls_sent(fake, provider)
    assert len(set(sent)) == 2
    assert [found for found, _ in results_sent(fake, provider)] == sent
    if len(IDS[written]) <= 40 and not refusal(provider, {"messages": _as_sent(provider, IDS[written])}):
        assert sent[0] == IDS[written]  # what a provider takes is not changed


def _as_sent(provider: Provider, call_id: str) -> list[dict[str, object]]:
    if provider == "anthropic":
        block = {"type": "tool_use", "id": call_id, "name": "x"}
        result = {"type": "tool_result", "tool_use_id": call_id}
        return [{"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
    call = {"id": call_id, "function": {"name": "x"}}
    return [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": call_id}]


@pytest.mark.parametrize("other", PROVIDERS)
async def test_another_provider_goes_on(fake: FakeLLM, model: LanguageModel, other: Provider) -> None:
    """A fall-back is given what the provider before it wrote in its own form."""
    wanted = [Call(name="shop__weather", id="functions.shop__weather:0"), Call(name="shop__weather", id="D681PevKs")]
    fake.replies.append(Reply(text="Let me look.", thinking="Two cities.", tool_calls=wanted))
    _, answer = await collect(model, ask("weather?", tools=(WEATHER,)))
    fallback = RemoteModel(ProviderConfig(other, KEY, fake.endpoint(other)))
    await collect(fallback, conversation(*answer.tool_calls, answer=answer))
    sent = calls_sent(fake, other)
    assert len(set(sent)) == 2
    assert [found for found, _ in results_sent(fake, other)] == sent
    await fallback.close()


async def test_long_names_are_short_and_come_back(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    assert re.fullmatch(r"[a-zA-Z0-9_-]{64}", LONG)
    assert LONG != tool_name("team one", "w" * 254 + "x") != tool_name("team_one", "w" * 255)
    fake.replies.append(Reply(text="", tool_calls=[Call(name=LONG, id="D681PevKs")], chunk_size=3))
    request = ask("go", tools=(ToolSpec(LONG, "A long one.", {"type": "object", "properties": {}}),))
    _, answer = await collect(model, request)
    assert answer.tool_calls == (ToolCall("D681PevKs", LONG, "{}"),)


@pytest.mark.parametrize("name", ["shop.weather", "shop/weather", "functions.shop weather", "ü" * 300, ""])
@pytest.mark.parametrize("native", [True, False])
async def test_a_name_that_a_model_made_up_does_not_end_the_chat(
    fake: FakeLLM, model: LanguageModel, provider: Provider, name: str, native: bool
) -> None:
    fake.replies.append(Reply(text="", tool_calls=[Call(name=name or "x", id="D681PevKs")]))
    _, answer = await collect(model, ask("weather?", tools=(WEATHER,)))
    assert answer.tool_calls[0].name == (name or "x")
    made_up = replace(answer.tool_calls[0], name=name)
    _, again = await collect(model, conversation(made_up, answer=answer if native else None))
    assert again.text

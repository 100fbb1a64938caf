"""Every provider's adapter against the fake server: what is sent, what is streamed, what an answer holds."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from pydantic import JsonValue

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    LanguageModel,
    ProviderConfig,
    Sampling,
    TextDelta,
    ToolCall,
    ToolMessage,
    openai,
)
from sinas_server.backends.llm.options import ProviderOptions, endpoint_of
from sinas_server.backends.llm.remote import RemoteModel
from tests.backends.llm.asking import KEY, PROVIDERS, WEATHER, Connect, Way, ask, collect, failure, text, thinking
from tests.fakes.llm_server import Call, FakeLLM, Provider, Reply

Json = dict[str, Any]
ARGUMENTS = '{"city":  "Köln", "days": 1.50}'


async def test_streams_text_and_ends_with_the_whole_answer(fake: FakeLLM, model: LanguageModel) -> None:
    fake.replies.append(Reply(text="Grüße aus dem Stück, 你好!", chunks=5, cached_tokens=4))
    events, answer = await collect(model, ask())
    assert [type(event) for event in events] == [TextDelta] * 5
    assert text(events) == answer.text == "Grüße aus dem Stück, 你好!"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.cache_read_tokens) == (11, 7, 4)
    assert answer.finish_reason == "stop"
    assert answer.tool_calls == ()


async def test_sends_model_messages_and_settings(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    request = replace(ask("Hi", tools=(WEATHER,)), sampling=Sampling(temperature=0.25), max_tokens=77)
    await collect(model, request)
    body = fake.requests[0].body
    assert body["model"] == "fake-large"
    assert body["temperature"] == 0.25
    assert body["max_tokens"] == 77
    assert body["stream"] is True
    assert "Be brief." in json.dumps(body["system"] if provider == "anthropic" else body["messages"][0])
    assert "Hi" in json.dumps(body["messages"][-1])
    tool = body["tools"][0] if provider == "anthropic" else body["tools"][0]["function"]
    assert tool["name"] == "shop__weather"
    schema = tool["input_schema"] if provider == "anthropic" else tool["parameters"]
    assert schema["required"] == ["city"]
    assert fake.requests[0].headers["authorization"] == f"Bearer {KEY}"


async def test_parallel_tool_calls_keep_their_arguments_and_equal_ids(fake: FakeLLM, model: LanguageModel) -> None:
    calls = [Call(name="shop__weather", arguments=ARGUMENTS), Call(name="shop__weather", arguments="{}")]
    fake.replies.append(Reply(text="Let me look.", tool_calls=calls, chunk_size=3))
    events, answer = await collect(model, ask(tools=(WEATHER,)))
    assert answer.tool_calls == (
        ToolCall("call_0", "shop__weather", ARGUMENTS),
        ToolCall("call_0", "shop__weather", "{}"),
    )
    assert answer.finish_reason == "tool_calls"
    assert answer.text == text(events) == "Let me look."


async def test_invalid_arguments_are_passed_on_as_written(fake: FakeLLM, model: LanguageModel) -> None:
    fake.replies.append(Reply(text="", tool_calls=[Call(name="shop__weather", arguments='{"city": ')]))
    _, answer = await collect(model, ask(tools=(WEATHER,)))
    assert answer.tool_calls[0].arguments == '{"city": '
    # and they can be sent back with the complaint as the tool's result
    request = ask(
        "Hi",
        AssistantMessage(answer.text, answer.tool_calls, answer.native),
        ToolMessage("call_0", "shop__weather", "not JSON"),
        tools=(WEATHER,),
    )
    _, again = await collect(model, request)
    assert again.text


def results_sent(fake: FakeLLM, provider: Provider) -> list[tuple[str, str]]:
    """The tool results of the last request: call id and content."""
    found = []
    for message in fake.requests[-1].body["messages"]:
        if provider == "anthropic":
            blocks = [block for block in message["content"] if block["type"] == "tool_result"]
            found += [(block["tool_use_id"], json.dumps(block["content"])) for block in blocks]
        elif message["role"] == "tool":
            found.append((message["tool_call_id"], json.dumps(message["content"])))
    return found


def calls_sent(fake: FakeLLM, provider: Provider) -> list[str]:
    """The ids of the calls of the last request."""
    found = []
    for message in fake.requests[-1].body["messages"]:
        if provider == "anthropic" and message["role"] == "assistant":
            found += [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        else:
            found += [call["id"] for call in message.get("tool_calls") or []]
    return found


@pytest.mark.parametrize("native", [True, False])
async def test_results_go_back_under_the_ids_given(
    fake: FakeLLM, model: LanguageModel, provider: Provider, native: bool
) -> None:
    fake.replies.append(Reply(tool_calls=[Call(name="shop__weather", arguments='{"city":"Köln"}')]))
    _, answer = await collect(model, ask(tools=(WEATHER,)))
    shown = replace(answer.tool_calls[0], id="call_0-2")  # as the chat shows an id that another turn already used
    request = ask(
        "Hi",
        AssistantMessage(answer.text, (shown,), answer.native if native else None),
        ToolMessage("call_0-2", "shop__weather", '{"sky": "grey"}'),
        tools=(WEATHER,),
    )
    await collect(model, request)
    ((call_id, content),) = results_sent(fake, provider)
    assert "grey" in content
    assert calls_sent(fake, provider) == [call_id]
    if provider == "mistral":
        assert len(call_id) == 9 and call_id.isalnum()
    else:
        assert call_id == "call_0-2"


async def test_thinking_is_streamed_and_kept_apart(fake: FakeLLM, model: LanguageModel) -> None:
    fake.replies.append(Reply(thinking="First the sum, then the tax.", text="42", chunk_size=5))
    events, answer = await collect(model, ask())
    assert thinking(events) == answer.thinking == "First the sum, then the tax."
    assert answer.text == "42"


through_libraries = pytest.mark.parametrize("way", [Way(known) for known in PROVIDERS], ids=PROVIDERS, indirect=True)
THOUGHT = "I need the weather."
REPLAYED: dict[Provider, Json] = {
    "anthropic": {
        "content": [
            {"type": "thinking", "thinking": THOUGHT, "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "b3BhcXVl"},
        ]
    },
    "openai": {"reasoning_content": THOUGHT},
    "ollama": {"reasoning": THOUGHT},
    "mistral": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}]},
}


async def thoughtful(fake: FakeLLM, model: LanguageModel) -> AssistantMessage:
    """An answer that was thought about and calls a tool, as the journal keeps it."""
    call = Call(name="shop__weather")
    fake.replies.append(
        Reply(thinking=THOUGHT, signature="c2ln", redacted="b3BhcXVl", text="Let me see.", tool_calls=[call])
    )
    _, answer = await collect(model, ask(tools=(WEATHER,)))
    return AssistantMessage(answer.text, answer.tool_calls, json.loads(json.dumps(answer.native)))


async def sent_back(fake: FakeLLM, model: LanguageModel, said: AssistantMessage) -> Json:
    """The same answer as a provider is given it again in the next step."""
    request = ask("Hi", said, ToolMessage("call_0", "shop__weather", "grey"), tools=(WEATHER,))
    await collect(model, request)
    found: Json = next(message for message in fake.requests[-1].body["messages"] if message["role"] == "assistant")
    return found


@through_libraries
async def test_thinking_is_replayed_to_who_thought_it(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    said = await thoughtful(fake, model)
    sent = await sent_back(fake, model, said)
    for name, thoughts in REPLAYED[provider].items():
        assert (sent[name][: len(thoughts)] if isinstance(thoughts, list) else sent[name]) == thoughts
    assert "Let me see." in json.dumps(sent["content"])
    # What is said may be changed; what was thought goes with the call.
    changed = await sent_back(fake, model, replace(said, text=""))
    assert "Let me see." not in json.dumps(changed)
    assert THOUGHT in json.dumps(changed)


@through_libraries
async def test_thinking_is_not_shown_to_another_provider(
    fake: FakeLLM, model: LanguageModel, provider: Provider
) -> None:
    said = await thoughtful(fake, model)
    for other in PROVIDERS:
        if other == provider:
            continue
        another = RemoteModel(ProviderConfig(other, KEY, fake.endpoint(other)))
        sent = await sent_back(fake, another, said)
        await another.close()
        assert "Let me see." in json.dumps(sent)
        assert "shop__weather" in json.dumps(sent)
        assert THOUGHT not in json.dumps(fake.requests[-1].body)


def marks(body: JsonValue) -> list[str]:
    """Where Anthropic is asked to keep what comes before: the keys that lead there."""
    if isinstance(body, dict):
        found = [f"{key}.{path}" for key, value in body.items() for path in marks(value)]
        return [*found, "here"] if "cache_control" in body else found
    items = body if isinstance(body, list) else []
    return [f"{n - len(items)}.{path}" for n, item in enumerate(items) for path in marks(item)]


async def test_prompts_are_kept_where_that_is_known(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    request = ask("One", AssistantMessage("Two"), "Three", tools=(WEATHER, replace(WEATHER, name="other")))
    await collect(model, request)
    await collect(model, replace(request, cache_key="chat-1"))
    alone, in_chat = (sent.body for sent in fake.requests)
    assert marks(alone) == []
    assert "prompt_cache_key" not in in_chat  # a stranger's server may not know it
    wanted = {"messages.-1.content.-1.here", "system.-1.here", "tools.-1.here"} if provider == "anthropic" else set()
    assert set(marks(in_chat)) == wanted


async def test_prompts_are_kept_as_configured(fake: FakeLLM, provider: Provider) -> None:
    for wanted in (True, False):
        options: dict[str, JsonValue] = {"prompt_caching": wanted}
        model = RemoteModel(ProviderConfig(provider, KEY, fake.endpoint(provider), options))
        await collect(model, replace(ask(), cache_key="chat-1"))
        body = fake.requests[-1].body
        assert bool(marks(body)) == (wanted and provider == "anthropic")
        assert body.get("prompt_cache_key") == ("chat-1" if wanted and provider in {"openai", "mistral"} else None)
        await model.close()


async def test_an_edited_answer_is_sent_as_edited(fake: FakeLLM, model: LanguageModel) -> None:
    fake.replies.append(Reply(text="The secret is 1234."))
    _, answer = await collect(model, ask())
    await collect(model, ask("Hi", AssistantMessage("The secret is ****.", (), answer.native), "And?"))
    sent = json.dumps(fake.requests[-1].body)
    assert "****" in sent
    assert "1234" not in sent


async def test_a_native_form_of_another_version_is_ignored(fake: FakeLLM, model: LanguageModel) -> None:
    await collect(model, ask("Hi", AssistantMessage("Hello.", (), {"kind": "response", "parts": "?"}), "And?"))
    assert "Hello." in json.dumps(fake.requests[-1].body)


async def test_output_schema_is_enforced_or_told(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {"total": {"type": "number"}},
        "required": ["total"],
    }
    fake.replies.append(Reply(text='{"total": 3}'))
    _, answer = await collect(model, replace(ask(), output_schema=schema))
    assert answer.text == '{"total": 3}'
    body = fake.requests[0].body
    if provider in {"openai", "ollama"}:
        assert body["response_format"]["json_schema"]["schema"]["required"] == ["total"]
    else:
        assert "total" in json.dumps(body.get("system") or body["messages"][0:2])


async def test_length_limit_is_reported(fake: FakeLLM, model: LanguageModel) -> None:
    fake.replies.append(Reply(finish_reason="length"))
    _, answer = await collect(model, ask())
    assert answer.finish_reason == "length"


async def test_lists_models(fake: FakeLLM, model: LanguageModel) -> None:
    assert await model.list_models() == ["fake-large", "fake-small"]


async def test_options_reach_the_provider(fake: FakeLLM, provider: Provider, connect: Connect) -> None:
    options: dict[str, JsonValue] = {
        "max_tokens": 5,
        "organization_id": "org-1",
        "headers": {"X-Team": "blue"},
        "unknown": True,
    }
    model = connect(ProviderConfig(provider, KEY, fake.endpoint(provider), options))
    await collect(model, ask())
    sent = fake.requests[0]
    assert sent.body["max_tokens"] == 5
    assert sent.headers["x-team"] == "blue"
    if provider == "openai":
        assert sent.headers["openai-organization"] == "org-1"
    await model.close()


async def test_thinking_can_be_asked_for(fake: FakeLLM) -> None:
    model = RemoteModel(ProviderConfig("anthropic", KEY, fake.endpoint("anthropic"), {"thinking": "low"}))
    await collect(model, replace(ask(), model="claude-haiku-5-5"))
    body = fake.requests[0].body
    assert body["thinking"]["type"] in {"enabled", "adaptive"}
    await model.close()


def test_openai_itself_gets_its_newer_names() -> None:
    config = ProviderConfig("openai", KEY)
    connection = openai.connect(config, endpoint_of(config), ProviderOptions(), httpx2.AsyncClient())
    profile = connection.model("gpt-4o").profile
    assert profile.get("openai_chat_supports_max_completion_tokens", True)
    assert profile.get("openai_chat_streaming_requires_finish_reason")
    assert profile.get("openai_chat_send_back_thinking_parts") is False, "it would be sent under the item's id"


async def test_the_api_that_is_configured_is_asked_for_everything(fake: FakeLLM) -> None:
    model = RemoteModel(ProviderConfig("openai", KEY, fake.endpoint("openai"), {"api": "responses"}))
    fake.default = Reply(status=400)  # it does not speak this one
    for verbatim in (False, True):
        await failure(model, replace(ask(), verbatim=verbatim))
    assert [request.path for request in fake.requests] == ["/v1/responses"] * 2
    await model.close()


async def test_one_connection_serves_many_requests(
    fake: FakeLLM, model: LanguageModel, provider: Provider, drained: None
) -> None:
    for _ in range(3):
        await collect(model, ask())
    # Mistral's library stops reading at `[DONE]`: if the end of the body has not come by then, its connection closes.
    assert fake.connections in ((1, 2, 3) if provider == "mistral" else (1,))


@pytest.fixture
async def held(fake: FakeLLM) -> AsyncIterator[FakeLLM]:
    fake.replies.append(Reply(text="one two three four five six", hold_after=6))
    yield fake


async def test_closing_early_closes_the_connection(held: FakeLLM, model: LanguageModel) -> None:
    stream = model.stream(ask())
    first = await anext(stream)
    assert not isinstance(first, Answer)
    await stream.aclose()  # type: ignore[attr-defined]  # it is an async generator, as the port says
    while not held.requests[0].closed_early:
        await asyncio.sleep(0.01)

"""An answer does not depend on where the network cuts its bytes: the same events for every split of every stream.

`streams/` holds answers in the form that each provider writes them: two calls, text beyond ASCII, tokens, and reasoning
where it has that. Ollama is asked over its OpenAI-compatible door, so its lines are server-sent events too.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import httpx2
import pytest
from pydantic import JsonValue

from sinas_server.backends.llm import Answer, Event, LanguageModel, ProviderConfig, ProviderError, ToolCallDelta, Usage
from sinas_server.backends.llm.remote import RemoteModel
from tests.backends.llm.asking import KEY, WEATHER, ask, text, thinking
from tests.backends.llm.test_aimock import mock
from tests.fakes.llm_server import Call, FakeLLM, Provider, Reply

__all__ = ["mock"]
STREAMS = Path(__file__).with_name("streams")
STRIDE = 7
"""Bytes per piece; with every first piece from 1 to this, each place of the stream is a cut, and no two runs agree."""
REQUEST = replace(ask("weather?", tools=(WEATHER,)), stream_calls=True)
WHOLE = Reply(text="Grüß 你 👋", tool_calls=[Call(name="shop__weather", arguments='{"city":"Köln"}')], chunk_size=6)


@dataclass(frozen=True)
class Outcome:
    """Everything that a request led to."""

    events: tuple[Event, ...]
    error: str | None
    retryable: bool


async def outcome(model: LanguageModel) -> Outcome:
    """What the port gives for the next reply; without the time of day, which the library adds."""
    events: list[Event] = []
    try:
        async for event in model.stream(REQUEST):
            events.append(event)  # noqa: PERF401 - what came before an error counts
    except ProviderError as error:
        return Outcome(tuple(events), str(error), error.retryable)
    return Outcome(tuple(map(_timeless, events)), None, retryable=False)


def _timeless(event: Event) -> Event:
    if not isinstance(event, Answer) or event.native is None:
        return event
    native = cast(dict[str, JsonValue], event.native)
    return replace(event, native={key: native[key] for key in native if key != "timestamp"})


async def every_split(fake: FakeLLM, model: LanguageModel, reply: Reply) -> AsyncIterator[tuple[str, Outcome]]:
    """What comes of a reply for each way of cutting its bytes; the first is uncut."""
    for first, every in [(None, None), (None, 1), *((first, STRIDE) for first in range(1, STRIDE + 1))]:
        fake.replies.append(reply.model_copy(update={"split_at": first, "split_every": every}))
        yield f"first piece of {first} bytes, then of {every}", await outcome(model)


async def same_for_every_split(fake: FakeLLM, model: LanguageModel, reply: Reply) -> Outcome:
    """The outcome of a reply, which is the same however its bytes are cut."""
    [(_, whole), *others] = [found async for found in every_split(fake, model, reply)]
    for split, found in others:
        assert found == whole, split
    return whole


def recorded(provider: Provider) -> str:
    return (STREAMS / f"{provider}.sse").read_bytes().decode()


def check(found: Outcome, provider: Provider) -> None:
    """The answer in `streams/`, said by its events and by its end."""
    *events, answer = found.events
    assert found.error is None
    assert isinstance(answer, Answer)
    assert answer.text == text(events) == 'Grüß 你好 👋\n"so"\\ '
    assert answer.thinking == thinking(events) == ("" if provider == "openai" else "Zwei Städte, zwei Fragen.")
    assert [(call.name, call.arguments) for call in answer.tool_calls] == [
        ("shop__weather", '{"city":"Köln"}'),
        ("shop__weather", "{}"),
    ]
    assert len({call.id for call in answer.tool_calls}) == 2
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert "".join(event.arguments for event in pieces if event.index == 0) == '{"city":"Köln"}'
    assert [event.id for event in pieces if event.id] == [call.id for call in answer.tool_calls]
    assert answer.usage == Usage(82, 41, 0 if provider == "ollama" else 64)
    assert answer.finish_reason == "tool_calls"


async def test_an_answer_as_the_provider_writes_it(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    check(await same_for_every_split(fake, model, Reply(recorded=recorded(provider))), provider)


async def test_line_ends_of_two_bytes_and_comments(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    stream = ": PROCESSING\n\n" + recorded(provider).replace("\n\n", "\n\n: still here\n\n", 3)
    check(await same_for_every_split(fake, model, Reply(recorded=stream.replace("\n", "\r\n"))), provider)


async def test_an_error_inside(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    reply = WHOLE.model_copy(update={"fail_after": 4, "error": "Überlastet, sorry."})
    found = await same_for_every_split(fake, model, reply)
    assert found.error is not None and found.retryable
    assert provider == "mistral" or "Überlastet, sorry." in found.error  # its library hides the words
    assert "Grüß 你 👋".startswith(text(list(found.events)))


def unfinished(provider: Provider, *, clean: bool) -> Reply:
    """An answer that ends in the middle of a character, as if that were all or with the connection."""
    whole = recorded(provider).encode()
    return Reply(recorded=whole.decode(), cut_after=whole.index("👋".encode()) + 2, cut_clean=clean)


async def test_an_end_that_does_not_come(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    found = await same_for_every_split(fake, model, unfinished(provider, clean=True))
    assert found.error is not None and found.retryable
    assert text(list(found.events)).startswith("Grüß")
    assert not any(isinstance(event, Answer) for event in found.events)


async def test_a_connection_that_breaks(fake: FakeLLM, model: LanguageModel, provider: Provider) -> None:
    """What came right before the break may not be heard any more."""
    async for split, found in every_split(fake, model, unfinished(provider, clean=False)):
        assert found.error is not None and found.retryable, split
        assert "Grüß 你好 👋".startswith(text(list(found.events))), split
        assert not any(isinstance(event, Answer) for event in found.events), split


@pytest.fixture(params=["openai", "anthropic", "ollama"])  # aimock cannot stream Mistral's tool calls
async def foreign(request: pytest.FixtureRequest, fake: FakeLLM, mock: str) -> AsyncIterator[tuple[LanguageModel, str]]:
    """A model that talks to our fake, and what the mock that nobody here wrote answers to the same request."""
    provider = cast(Provider, request.param)
    model = RemoteModel(ProviderConfig(provider, KEY, fake.endpoint(provider)))
    await outcome(model)
    path = "/v1/messages" if provider == "anthropic" else "/v1/chat/completions"
    async with httpx2.AsyncClient() as client:
        headers = {"authorization": f"Bearer {KEY}", "x-api-key": KEY, "anthropic-version": "2026-10-21"}
        answer = await client.post(mock + path, json=fake.requests[-1].body, headers=headers)
    assert answer.status_code == 200, answer.text
    yield model, answer.text
    await model.close()


async def test_answers_of_a_foreign_mock(fake: FakeLLM, foreign: tuple[LanguageModel, str]) -> None:
    model, stream = foreign
    found = await same_for_every_split(fake, model, Reply(recorded=stream))
    answer = found.events[-1]
    assert isinstance(answer, Answer)
    assert [call.arguments for call in answer.tool_calls] == ['{"city":"Köln","days":[1,2]}', "{}"]

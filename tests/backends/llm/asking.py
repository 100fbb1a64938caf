"""What the tests of the LLM port share: a request, and the collected answer to it."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from sinas_server.backends.llm import (
    Answer,
    EmbeddingRequest,
    Embeddings,
    Event,
    LanguageModel,
    Message,
    ModelRequest,
    ProviderConfig,
    ProviderError,
    SystemMessage,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ToolSpec,
    UserMessage,
)
from tests.fakes.llm_server import Provider

PROVIDERS: list[Provider] = ["openai", "anthropic", "mistral", "ollama"]
KEY = "sk-test-secret-key"
WEATHER = ToolSpec(
    "shop__weather",
    "The weather of a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@dataclass(frozen=True)
class Way:
    """A provider and how it is asked: through its library, or with requests that it gets as they are."""

    provider: Provider
    verbatim: bool = False


WAYS = [
    Way("openai"),
    Way("openai", verbatim=True),
    Way("anthropic"),
    Way("mistral"),
    Way("ollama"),
    Way("ollama", verbatim=True),
]
Connect = Callable[[ProviderConfig], LanguageModel]


class Verbatim:
    """A model of which everything is asked verbatim."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def stream(self, request: ModelRequest) -> AsyncIterator[Event]:
        return self._model.stream(replace(request, verbatim=True))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        return await self._model.embed(request)

    async def list_models(self) -> list[str]:
        return await self._model.list_models()

    async def close(self) -> None:
        await self._model.close()


def ask(*messages: Message | str, tools: tuple[ToolSpec, ...] = ()) -> ModelRequest:
    """A request with a system message and these messages."""
    said = tuple(UserMessage((TextPart(item),)) if isinstance(item, str) else item for item in messages or ("Hello?",))
    return ModelRequest("fake-large", (SystemMessage("Be brief."), *said), tools)


def with_system(request: ModelRequest, text: str) -> ModelRequest:
    """The same request with other instructions."""
    return replace(request, messages=(SystemMessage(text), *request.messages[1:]))


async def collect(model: LanguageModel, request: ModelRequest) -> tuple[list[Event], Answer]:
    """The events before the answer, and the answer."""
    events = [event async for event in model.stream(request)]
    answer = events.pop()
    assert isinstance(answer, Answer)
    assert not any(isinstance(event, Answer) for event in events)
    return events, answer


async def failure(model: LanguageModel, request: ModelRequest) -> ProviderError:
    """The error that the request ends in."""
    try:
        await collect(model, request)
    except ProviderError as error:
        return error
    raise AssertionError("the request did not fail")


def text(events: list[Event]) -> str:
    """The streamed text."""
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def thinking(events: list[Event]) -> str:
    """The streamed reasoning."""
    return "".join(event.text for event in events if isinstance(event, ThinkingDelta))

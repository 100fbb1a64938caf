"""Language models: one port over every provider's wire format.

The agent loop sees only these types. `Answer.native` is the provider's own form of the answer (JSON), journaled beside
ours and handed back on the next request, so that thinking signatures and the like survive.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import JsonValue


@dataclass(frozen=True)
class TextPart:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class MediaPart:
    """An image, an audio clip or a file: its bytes, or an address the provider fetches.

    `blob` is the key of bytes that are kept: whoever asks a model puts them into `data` first.
    """

    kind: Literal["image", "audio", "file"]
    media_type: str
    data: bytes | None = None
    url: str | None = None
    filename: str | None = None
    detail: Literal["low", "high", "auto"] | None = None
    blob: str | None = None
    size: int = 0
    """In bytes; 0 for an address."""


Part = TextPart | MediaPart


@dataclass(frozen=True)
class ToolCall:
    """A call the model asks for. `arguments` is JSON text exactly as the model wrote it (it may be invalid)."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class SystemMessage:
    """Instructions."""

    text: str


@dataclass(frozen=True)
class UserMessage:
    """What the user said."""

    parts: tuple[Part, ...]
    injected: bool = False
    """Whether it was said into an exchange that had begun; models are not told."""


@dataclass(frozen=True)
class AssistantMessage:
    """What the model answered earlier."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    native: JsonValue = None


@dataclass(frozen=True)
class ToolMessage:
    """The result of one call."""

    call_id: str
    name: str
    content: str


Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True)
class ToolSpec:
    """A tool as the model sees it; `parameters` is a JSON Schema object. `strict`: whether arguments must meet it."""

    name: str
    description: str
    parameters: Mapping[str, JsonValue]
    strict: bool | None = None


@dataclass(frozen=True)
class ToolChoice:
    """Which tools the model may call: any or none as it likes, none, at least one, or exactly the named one."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How the model picks its words, where the caller has an opinion; providers ignore what they do not have."""

    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning: Literal["minimal", "low", "medium", "high"] | None = None


@dataclass(frozen=True)
class ModelRequest:
    """One request to a model. `stream_calls`: yield `ToolCallDelta`s too.

    `cache_key` names a conversation whose requests all begin alike: providers that can keep that beginning, where
    the next request finds it cheaper.

    `verbatim`: it comes from a client that speaks OpenAI's chat completions and knows its model. A provider that speaks
    them too gets it as it is, unless it holds media; otherwise schemas and settings are fitted to the model.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    output_schema: Mapping[str, JsonValue] | None = None
    output_strict: bool | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream_calls: bool = False
    cache_key: str | None = None
    verbatim: bool = False


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0


@dataclass(frozen=True)
class TextDelta:
    """The next piece of the answer's text; never empty."""

    text: str


@dataclass(frozen=True)
class ThinkingDelta:
    """The next piece of the model's visible reasoning; never empty."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """The next piece of the arguments of call number `index`; its first piece has the id and the name too."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Answer:
    """The whole answer; always the last event of a stream.

    `finish_reason` is `stop`, `length`, `tool_calls`, `content_filter` or `error`.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: str = ""
    native: JsonValue = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"


Event = TextDelta | ThinkingDelta | ToolCallDelta | Answer


@dataclass(frozen=True)
class EmbeddingRequest:
    """Texts to embed; `dimensions`: the length of the vectors, where the model lets it be chosen."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None


@dataclass(frozen=True)
class Embeddings:
    """A vector for each text, in their order, and the tokens they took."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


class ProviderError(Exception):
    """The provider refused or failed. `retryable` is true for overload, rate limits and network failures."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        """When the provider wants to be asked again, if it says."""


@dataclass(frozen=True)
class ProviderConfig:
    """How to reach a provider. `options` is its `config`: `organization_id`, `max_tokens`, the rules of `scripted`."""

    type: Literal["openai", "anthropic", "mistral", "ollama", "scripted"]
    api_key: str | None = None
    endpoint: str | None = None
    options: Mapping[str, JsonValue] = field(default_factory=dict)


class LanguageModel(Protocol):
    """A provider, ready to be asked."""

    def stream(self, request: ModelRequest) -> AsyncIterator[Event]:
        """Ask, and yield the answer as it arrives; the last event is `Answer`. Raises `ProviderError`.

        Closing the iterator early closes the connection to the provider.
        """
        ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """The vectors of some texts. Raises `ProviderError`, also where the provider has no embeddings."""
        ...

    async def list_models(self) -> list[str]:
        """The names of the models it offers. Raises `ProviderError`."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...

"""OpenAI's chat completions over plain HTTP: one request, and its answer as it is streamed.

For requests that come in this form already (`ModelRequest.verbatim`): a fifth of the processor time that a provider's
library takes, and none of its memory.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from uuid import uuid4

import httpx2
import orjson
from pydantic import BaseModel, JsonValue, ValidationError

from sinas_server.backends.llm import (
    Answer,
    Event,
    ModelRequest,
    ProviderConfig,
    ProviderError,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from sinas_server.backends.llm.completion_request import completion_body
from sinas_server.backends.llm.failures import answered, redacted, retry_after_of, secrets_of, unreachable, words
from sinas_server.backends.llm.options import ProviderOptions
from sinas_server.backends.net import ForbiddenAddressError

MOST_BYTES = 16 << 20
"""Of one event: whoever sends more is no model."""
REASONS = {"function_call": "tool_calls", **{reason: reason for reason in ("length", "tool_calls", "content_filter")}}
DONE = b"[DONE]"
DRAIN_SECONDS = 0.5
SPEAKERS = frozenset({"openai", "ollama"})
"""The types of providers that speak OpenAI's chat completions."""


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _Call(BaseModel):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(BaseModel):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(BaseModel):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(BaseModel):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: JsonValue = None


class _Answering:
    """An answer while it is heard."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._refused = False
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: dict[int, tuple[int, str, str, list[str]]] = {}
        """By the provider's number: ours, id, name and arguments."""
        self._usage = Usage()

    def hear(self, chunk: _Chunk) -> list[Event]:
        """What is new."""
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details or _Details()
            cached = details.cached_tokens or 0, details.cache_write_tokens or 0
            self._usage = Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens, *cached)
        choice = chunk.choices[0] if chunk.choices else _Choice()
        self.reason = choice.finish_reason or self.reason
        return self._said(choice.delta) if choice.delta is not None else []

    def _said(self, delta: _Delta) -> list[Event]:
        events: list[Event] = []
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            self._thinking.append(thought)
            events.append(ThinkingDelta(thought))
        self._refused = self._refused or bool(delta.refusal)
        text = (delta.content or "") + (delta.refusal or "")
        if text:
            self._text.append(text)
            events.append(TextDelta(text))
        events += [self._called(call) for call in delta.tool_calls or ()]
        return events

    def _called(self, call: _Call) -> ToolCallDelta:
        function = call.function or _Function()
        arguments = function.arguments or ""
        number = call.index
        if number is None:  # some servers give whole calls without numbers
            number = len(self._calls) if call.id or not self._calls else len(self._calls) - 1
        known = self._calls.get(number)
        if known is not None:
            known[3].append(arguments)
            return ToolCallDelta(known[0], arguments)
        ours, call_id, name = len(self._calls), call.id or f"call_{uuid4().hex}", function.name or ""
        self._calls[number] = (ours, call_id, name, [arguments])
        return ToolCallDelta(ours, arguments, call_id, name)

    def answer(self) -> Answer:
        """All of it."""
        calls = [ToolCall(call_id, name, "".join(said) or "{}") for _, call_id, name, said in self._calls.values()]
        reason = "content_filter" if self._refused else REASONS.get(self.reason or "", "stop")
        return Answer(
            "".join(self._text), tuple(calls), "".join(self._thinking), usage=self._usage, finish_reason=reason
        )


def request_headers(config: ProviderConfig, options: ProviderOptions) -> dict[str, str]:
    """What every request for a chat completion says of who asks."""
    headers = {"content-type": "application/json"}
    if config.api_key:
        headers["authorization"] = f"Bearer {config.api_key}"
    if options.organization_id and config.type == "openai":
        headers["openai-organization"] = options.organization_id
    return headers | {name.lower(): value for name, value in options.headers.items()}


class Completions:
    """A provider that speaks OpenAI's chat completions, over one HTTP client."""

    def __init__(self, config: ProviderConfig, endpoint: str, options: ProviderOptions) -> None:
        self._provider = config.type
        self._address = f"{endpoint}/chat/completions"
        self._endpoint = endpoint
        self._options = options
        self._secrets = secrets_of(config, options)
        self._headers = request_headers(config, options)

    async def stream(self, http: httpx2.AsyncClient, request: ModelRequest) -> AsyncGenerator[Event, None]:
        """See `LanguageModel.stream`."""
        heard = _Answering()
        async with self._asked(http, request) as response, aclosing(events_of(response)) as events:
            async for data in events:
                for event in heard.hear(self._chunk(data)):
                    if request.stream_calls or not isinstance(event, ToolCallDelta):
                        yield event
        if heard.reason is None:
            raise ProviderError(f"{self._provider} ended its answer before it was whole", retryable=True)
        yield heard.answer()

    @asynccontextmanager
    async def _asked(self, http: httpx2.AsyncClient, request: ModelRequest) -> AsyncIterator[httpx2.Response]:
        asked = self._request(http, request)
        try:
            response = await http.send(asked, stream=True)
            try:
                if not response.is_success:
                    raise self._refusal(response, await response.aread())
                yield response
            finally:
                await response.aclose()
        except (httpx2.HTTPError, ForbiddenAddressError) as error:
            raise unreachable(self._provider, error, self._secrets) from None

    def _request(self, http: httpx2.AsyncClient, request: ModelRequest) -> httpx2.Request:
        body = completion_body(self._endpoint, self._options, request)
        try:
            return http.build_request("POST", self._address, content=orjson.dumps(body), headers=self._headers)
        except (TypeError, ValueError) as error:  # such as a key that no header holds
            told = redacted(f"the request cannot be sent to {self._provider}: {error}", self._secrets)
            raise ProviderError(told) from None

    def _refusal(self, response: httpx2.Response, body: bytes) -> ProviderError:
        found = answered(self._provider, response.status_code, body, self._secrets)
        found.retry_after_seconds = retry_after_of(response.headers)
        # Reported as 429, but waiting does not fill an empty account.
        found.retryable = found.retryable and b'"insufficient_quota"' not in body
        return found

    def _chunk(self, data: bytes) -> _Chunk:
        try:
            chunk = _Chunk.model_validate_json(data)
        except ValidationError:
            raise ProviderError(f"{self._provider} sent something that is no chat completion", retryable=True) from None
        if chunk.error is not None:
            told = redacted(f"{self._provider} failed: {words(chunk.error)}", self._secrets)
            raise ProviderError(told, retryable=True)
        return chunk


async def events_of(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events (WHATWG HTML, section 9.2) before `[DONE]`; other fields say nothing here."""
    rest, data = b"", list[bytes]()
    pieces = response.aiter_bytes()
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                data.append(text[5:].removeprefix(b" "))
            elif not text and data:
                if (event := b"\n".join(data)).startswith(DONE):
                    await _drain(pieces)
                    return
                yield event
                data = []
        if len(rest) > MOST_BYTES:
            raise ProviderError("the provider sent an event that is too large")


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    """Read to the end, or the connection could not be used again; but whoever leaves it open makes nobody wait."""
    with suppress(TimeoutError, httpx2.HTTPError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in pieces:
                pass

"""OpenAI's client with the one method that agents need, at a quarter of its processor time.

pydantic-ai decides what is asked and reads the answer, as with the original. What is left out: the original walks
through every request for parameters to rename, of which chat completions have none, and builds the objects of every
chunk in Python, field by field. Here pydantic reads a chunk, and only what it refuses is built the original's way.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import cast

import httpx2
from openai import APIError, APIStatusError, AsyncOpenAI, NotGiven, Omit
from openai.types.chat import ChatCompletionChunk
from pydantic import ValidationError

from sinas_server.backends.llm.completions import events_of

LOCAL = frozenset({"stream", "timeout", "extra_headers", "extra_body"})
"""Arguments that are not sent as they are: streamed is every answer, and the HTTP client knows how long it waits."""


class CompletionStream:
    """An answer while it comes, as pydantic-ai takes it of the original: its chunks."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response

    async def __aenter__(self) -> "CompletionStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection back, or close it if the answer was not read to its end."""
        await self.response.aclose()

    async def __aiter__(self) -> AsyncGenerator[ChatCompletionChunk, None]:
        async for data in events_of(self.response):
            yield _chunk(self.response, data)


class _Completions:
    def __init__(self, client: AsyncOpenAI, http: httpx2.AsyncClient, headers: Mapping[str, str]) -> None:
        self._http = http
        self._address = f"{str(client.base_url).rstrip('/')}/chat/completions"
        self._headers = {**headers, "accept": "text/event-stream"}

    async def create(self, **asked: object) -> CompletionStream:
        """Ask. Raises `APIStatusError` for a refusal, and what the HTTP client raises."""
        given = {name: value for name, value in asked.items() if not isinstance(value, (NotGiven, Omit))}
        body = {name: value for name, value in given.items() if name not in LOCAL}
        body |= {"stream": True, **cast(Mapping[str, object], given.get("extra_body") or {})}
        headers = {**self._headers, **cast(Mapping[str, str], given.get("extra_headers") or {})}
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()  # orjson takes no large integers
        request = self._http.build_request("POST", self._address, content=content, headers=headers)
        response = await self._http.send(request, stream=True)
        if response.is_success:
            return CompletionStream(response)
        try:
            raise _refusal(response, await response.aread())
        finally:
            await response.aclose()


def lighten(client: AsyncOpenAI, http: httpx2.AsyncClient, headers: Mapping[str, str]) -> AsyncOpenAI:
    """The client with `chat.completions.create` for streamed answers only, sent over `http` with these headers."""
    light = _Completions(client, http, headers)
    client.chat.completions.create = light.create  # type: ignore[method-assign, assignment]  # for streams only
    return client


def _chunk(response: httpx2.Response, data: bytes) -> ChatCompletionChunk:
    """One chunk. Raises `APIError` for an error that the server sends in the midst of an answer."""
    try:
        chunk = ChatCompletionChunk.model_validate_json(data)
    except ValidationError:
        return _built(response, data)
    error = (chunk.model_extra or {}).get("error")
    if error:
        raise _failure(response, error)
    return chunk


def _built(response: httpx2.Response, data: bytes) -> ChatCompletionChunk:
    """A chunk of a server that leaves out what it need not, or writes what nobody knows."""
    value = json.loads(data)
    if not isinstance(value, dict):
        raise APIError("it sent something that is no chat completion", response.request, body=None)
    if value.get("error"):
        raise _failure(response, value["error"])
    return ChatCompletionChunk.construct(**value)


def _failure(response: httpx2.Response, error: object) -> APIError:
    message = error.get("message") if isinstance(error, dict) else None
    return APIError(str(message or "An error occurred during streaming"), response.request, body=error)


def _refusal(response: httpx2.Response, content: bytes) -> APIStatusError:
    body: object = content.decode(errors="replace").strip()
    try:
        body = json.loads(content)
    except ValueError:
        pass
    else:
        body = body.get("error", body) if isinstance(body, dict) else body
    return APIStatusError(f"Error code: {response.status_code}", response=response, body=body)

"""A provider over the network: loads its library off the event loop at first use, and owns its one HTTP client."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import httpx2

from sinas_server.backends.llm import (
    EmbeddingRequest,
    Embeddings,
    Event,
    ModelRequest,
    ProviderConfig,
    ProviderError,
)
from sinas_server.backends.llm.completion_request import is_text
from sinas_server.backends.llm.completions import SPEAKERS, Completions
from sinas_server.backends.llm.embedding import embed
from sinas_server.backends.llm.failures import secrets_of
from sinas_server.backends.llm.listing import list_models
from sinas_server.backends.llm.options import endpoint_of, read_options
from sinas_server.backends.transport import GuardedTransport

if TYPE_CHECKING:
    from sinas_server.backends.llm.direct import DirectModel

CONNECT_TIMEOUT = 10.0
"""Seconds to reach a provider."""


class RemoteModel:
    """A `LanguageModel` over HTTP."""

    def __init__(self, config: ProviderConfig) -> None:
        self._endpoint = endpoint_of(config)
        self._options = read_options(config)
        if not config.api_key and not config.endpoint:
            raise ProviderError(f"a provider of type {config.type} needs an api_key")
        self._config = config
        self._lock = asyncio.Lock()
        self._http: httpx2.AsyncClient | None = None
        self._direct: DirectModel | None = None
        speaks = config.type in SPEAKERS and self._options.api == "chat"
        self._completions = Completions(config, self._endpoint, self._options) if speaks else None

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Event, None]:
        """See `LanguageModel`. What is in the provider's own form goes over plain HTTP, without its library."""
        if request.verbatim and self._completions is not None and is_text(request):
            answer = self._completions.stream(self._client(), request)
        else:
            answer = (await self.warm()).stream(request)
        async with aclosing(answer) as events:
            async for event in events:
                yield event

    async def warm(self) -> "DirectModel":
        """Load what the first request needs, seconds of it, without touching the network."""
        async with self._lock:
            if self._direct is None:
                self._direct = await asyncio.to_thread(self._load, self._client())
            return self._direct

    async def list_models(self) -> list[str]:
        """See `LanguageModel`. Asks over plain HTTP, so that no provider's library is loaded for it."""
        return await list_models(self._client(), self._config, self._endpoint, secrets_of(self._config, self._options))

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See `LanguageModel`. Over plain HTTP too."""
        secrets = secrets_of(self._config, self._options)
        return await embed(self._client(), self._config, self._endpoint, request, secrets)

    async def close(self) -> None:
        """See `LanguageModel`. A later request connects anew."""
        async with self._lock:
            http, self._http, self._direct = self._http, None, None
        if http is not None:
            await http.aclose()

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            self._http = httpx2.AsyncClient(
                transport=GuardedTransport(),
                timeout=httpx2.Timeout(self._options.timeout, connect=CONNECT_TIMEOUT),
                headers=self._options.headers,
            )
        return self._http

    def _load(self, http: httpx2.AsyncClient) -> "DirectModel":
        from sinas_server.backends.llm.direct import connect  # lazy: takes seconds and 80 MB

        return connect(self._config, self._endpoint, self._options, http)

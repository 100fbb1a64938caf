"""Anthropic's messages API."""

import re

import httpx2
from anthropic import AsyncAnthropic
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider

from sinas_server.backends.llm import ProviderConfig
from sinas_server.backends.llm.connection import Connection
from sinas_server.backends.llm.dialect import Dialect
from sinas_server.backends.llm.options import ProviderOptions, keeps_prompts

DIALECT = Dialect(call_id=re.compile(r"[a-zA-Z0-9_-]{1,64}"))


def connect(config: ProviderConfig, endpoint: str, options: ProviderOptions, http: httpx2.AsyncClient) -> Connection:
    """A connection to a server that speaks Anthropic's messages API."""
    client = AsyncAnthropic(
        api_key=config.api_key or "none",
        base_url=endpoint,
        timeout=http.timeout,
        max_retries=0,
        default_headers=options.headers,
        http_client=http,
    )

    provider = AnthropicProvider(anthropic_client=client)
    caching = _caching if keeps_prompts(config, endpoint, options) else None
    return Connection(lambda name: AnthropicModel(name, provider=provider), DIALECT, caching=caching)


def _caching(cache_key: str) -> AnthropicModelSettings:
    # Marks after the tools, the instructions and the last message; gateways know these better than the newer mark
    # on the whole request.
    return AnthropicModelSettings(
        anthropic_cache_tool_definitions=True, anthropic_cache_instructions=True, anthropic_cache_messages=True
    )

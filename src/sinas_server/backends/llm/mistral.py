"""Mistral's chat completions."""

import re

import httpx2
from mistralai.client import Mistral
from pydantic_ai.models.mistral import MistralModel, MistralModelSettings
from pydantic_ai.providers.mistral import MistralProvider
from pydantic_ai.settings import ModelSettings

from sinas_server.backends.llm import ProviderConfig
from sinas_server.backends.llm.connection import Connection
from sinas_server.backends.llm.dialect import Dialect
from sinas_server.backends.llm.options import ProviderOptions, keeps_prompts

DIALECT = Dialect(call_id=re.compile(r"[a-zA-Z0-9]{9}"), call_id_length=9)


def connect(config: ProviderConfig, endpoint: str, options: ProviderOptions, http: httpx2.AsyncClient) -> Connection:
    """A connection to a server that speaks Mistral's API."""
    client = Mistral(
        api_key=config.api_key or "none",
        server_url=endpoint,
        async_client=http,
        timeout_ms=int(options.timeout * 1000),
    )

    provider = MistralProvider(mistral_client=client)
    # The library tries again by itself unless each request says not to.
    settings = ModelSettings(max_retries=0)
    caching = _caching if keeps_prompts(config, endpoint, options) else None
    return Connection(lambda name: MistralModel(name, provider=provider), DIALECT, settings, caching)


def _caching(cache_key: str) -> MistralModelSettings:
    return MistralModelSettings(mistral_prompt_cache_key=cache_key)

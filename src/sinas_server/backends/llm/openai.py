"""OpenAI, every endpoint that speaks one of its APIs, and Ollama, which does too."""

from urllib.parse import urlsplit

import httpx2
from openai import AsyncOpenAI
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.models.openai import (
    OpenAIChatModel,
    OpenAIChatModelSettings,
    OpenAIResponsesModel,
    OpenAIResponsesModelSettings,
)
from pydantic_ai.profiles import merge_profile
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from sinas_server.backends.llm import ProviderConfig
from sinas_server.backends.llm.completions import request_headers
from sinas_server.backends.llm.connection import Connection
from sinas_server.backends.llm.dialect import Dialect
from sinas_server.backends.llm.openai_light import lighten
from sinas_server.backends.llm.options import OFFICIAL, ProviderOptions, keeps_prompts

NO_KEY = "none"
"""Sent where a server wants no key, since the client insists on one."""
DIALECT = Dialect()


def connect(config: ProviderConfig, endpoint: str, options: ProviderOptions, http: httpx2.AsyncClient) -> Connection:
    """A connection to a server that speaks OpenAI's chat completions or responses."""
    client = AsyncOpenAI(
        api_key=config.api_key or NO_KEY,
        base_url=endpoint,
        timeout=http.timeout,
        max_retries=0,
        default_headers=options.headers,
        http_client=http,
    )
    # Else taken from the process environment, which is not this provider's.
    client.organization, client.project = options.organization_id, None
    if options.api == "chat":
        lighten(client, http, request_headers(config, options))

    if config.type == "ollama":
        return Connection(lambda name: _ollama(name, client), DIALECT)
    caching = _caching if keeps_prompts(config, endpoint, options) else None
    if options.api == "responses":
        return Connection(lambda name: _responses(name, client), DIALECT, _stateless(options), caching)
    return Connection(lambda name: _openai(name, client), DIALECT, caching=caching)


def _responses(name: str, client: AsyncOpenAI) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(name, provider=OpenAIProvider(openai_client=client))


def _stateless(options: ProviderOptions) -> OpenAIResponsesModelSettings:
    # The conversation is ours to keep; reasoning comes encrypted, and goes back with the rest of an answer.
    settings = OpenAIResponsesModelSettings(openai_store=False)
    if options.thinking:
        settings["openai_reasoning_summary"] = "auto"
    return settings


def _caching(cache_key: str) -> OpenAIChatModelSettings:
    return OpenAIChatModelSettings(openai_prompt_cache_key=cache_key)


def _openai(name: str, client: AsyncOpenAI) -> OpenAIChatModel:
    # A stream that simply ends would otherwise count as a whole answer.
    profile = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
    if client.base_url.host == urlsplit(OFFICIAL["openai"]).hostname:
        # What it thought is told by its other API only, and in a form that this one does not take.
        profile["openai_chat_send_back_thinking_parts"] = False
        return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client), profile=profile)
    default = OpenAICompatibleProvider.model_profile(name)
    reasons = bool(default and default.get("openai_supports_reasoning"))
    compatible = merge_profile(
        profile,
        OpenAIModelProfile(
            # Other servers know the older name only; OpenAI's reasoning models, behind a proxy, the newer only.
            openai_chat_supports_max_completion_tokens=reasons,
            openai_chat_supports_multiple_system_messages=False,
        ),
    )
    return OpenAIChatModel(
        name, provider=OpenAICompatibleProvider("openai-compatible", openai_client=client), profile=compatible
    )


def _ollama(name: str, client: AsyncOpenAI) -> OpenAIChatModel:
    profile = OpenAIModelProfile(
        openai_chat_streaming_requires_finish_reason=True,
        openai_chat_supports_multiple_system_messages=False,
        openai_chat_supports_max_completion_tokens=False,
    )
    return OllamaModel(name, provider=OllamaProvider(openai_client=client), profile=profile)

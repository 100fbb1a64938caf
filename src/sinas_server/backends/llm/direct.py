"""One streamed request to a provider through pydantic-ai's adapters; importing this loads its library."""

from collections.abc import AsyncGenerator
from functools import lru_cache

import httpx2
import pydantic_ai.messages as ai
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from sinas_server.backends.llm import (
    Event,
    ModelRequest,
    ProviderConfig,
    ProviderError,
    TextDelta,
    ThinkingDelta,
)
from sinas_server.backends.llm.connection import Adapter, Connection
from sinas_server.backends.llm.failures import secrets_of
from sinas_server.backends.llm.history import to_answer, to_history
from sinas_server.backends.llm.options import ProviderOptions
from sinas_server.backends.llm.translation import provider_errors


class DirectModel:
    """Requests over one connection."""

    def __init__(self, config: ProviderConfig, options: ProviderOptions, connection: Connection) -> None:
        self._provider = config.type
        self._options = options
        self._connection = connection
        self._model = lru_cache(maxsize=32)(connection.model)
        self._secrets = secrets_of(config, options)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Event, None]:
        """See `LanguageModel.stream`."""
        with provider_errors(self._provider, self._secrets):
            model = self._model(request.model)
            history = to_history(self._provider, request.messages, self._connection.dialect)
            async with model_request_stream(
                model,
                history,
                model_settings=self._settings(request),
                model_request_parameters=_parameters(model, request),
            ) as stream:
                async for event in stream:
                    delta = _delta(event)
                    if delta is not None:
                        yield delta
                response = stream.get()
            if response.finish_reason is None and "finish_reason" not in (response.provider_details or {}):
                raise ProviderError(f"{self._provider} ended its answer before it was whole", retryable=True)
            yield to_answer(response)

    def _settings(self, request: ModelRequest) -> ModelSettings:
        settings = self._connection.settings.copy()
        max_tokens = request.max_tokens or self._options.max_tokens
        if max_tokens is not None:
            settings["max_tokens"] = max_tokens
        if request.temperature is not None:
            settings["temperature"] = request.temperature
        if self._options.thinking is not None:
            settings["thinking"] = self._options.thinking
        return settings


def _parameters(model: Adapter, request: ModelRequest) -> ModelRequestParameters:
    tools = [
        ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=dict(tool.parameters))
        for tool in request.tools
    ]
    if request.output_schema is None:
        return ModelRequestParameters(function_tools=tools)
    # Where the provider cannot enforce a schema, it is told about it.
    native = model.profile.get("supports_json_schema_output", False)
    return ModelRequestParameters(
        function_tools=tools,
        output_mode="native" if native else "prompted",
        output_object=OutputObjectDefinition(json_schema=dict(request.output_schema), name="answer"),
        allow_text_output=False,
    )


def _delta(event: ai.ModelResponseStreamEvent) -> TextDelta | ThinkingDelta | None:
    if isinstance(event, ai.PartStartEvent):
        part = event.part
        if isinstance(part, ai.TextPart) and part.content:
            return TextDelta(part.content)
        if isinstance(part, ai.ThinkingPart) and part.content:
            return ThinkingDelta(part.content)
    elif isinstance(event, ai.PartDeltaEvent):
        delta = event.delta
        if isinstance(delta, ai.TextPartDelta) and delta.content_delta:
            return TextDelta(delta.content_delta)
        if isinstance(delta, ai.ThinkingPartDelta) and delta.content_delta:
            return ThinkingDelta(delta.content_delta)
    return None


def connect(config: ProviderConfig, endpoint: str, options: ProviderOptions, http: httpx2.AsyncClient) -> DirectModel:
    """The model for a provider's type over one HTTP client."""
    if config.type == "anthropic":
        from sinas_server.backends.llm import anthropic  # lazy: only the library in use

        return DirectModel(config, options, anthropic.connect(config, endpoint, options, http))
    if config.type == "mistral":
        from sinas_server.backends.llm import mistral  # lazy: only the library in use

        return DirectModel(config, options, mistral.connect(config, endpoint, options, http))
    from sinas_server.backends.llm import openai  # lazy: only the library in use

    return DirectModel(config, options, openai.connect(config, endpoint, options, http))

"""One streamed request to a provider through pydantic-ai's adapters; importing this loads its library."""

from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import cast

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
    ToolCallDelta,
)
from sinas_server.backends.llm.connection import Adapter, Connection
from sinas_server.backends.llm.failures import secrets_of
from sinas_server.backends.llm.history import Origin, text_arguments, to_answer, to_history
from sinas_server.backends.llm.options import ProviderOptions
from sinas_server.backends.llm.translation import provider_errors


class DirectModel:
    """Requests over one connection."""

    def __init__(self, config: ProviderConfig, options: ProviderOptions, connection: Connection) -> None:
        self._config = config
        self._provider = config.type
        self._options = options
        self._connection = connection
        self._model = lru_cache(maxsize=32)(connection.model)
        self._secrets = secrets_of(config, options)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[Event, None]:
        """See `LanguageModel.stream`."""
        with provider_errors(self._provider, self._secrets):
            model = self._model(request.model)
            origin = Origin(model.system, model.base_url)
            history = to_history(self._config, request, self._connection.dialect, origin)
            async with model_request_stream(
                model,
                history,
                model_settings=self._settings(request),
                model_request_parameters=_parameters(model, request),
            ) as stream:
                calls: dict[int, int] = {}
                async for event in stream:
                    delta = _delta(event) or (_call_delta(event, calls) if request.stream_calls else None)
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
        if self._options.thinking is not None:
            settings["thinking"] = self._options.thinking
        _add_sampling(settings, request)
        if request.cache_key is not None and self._connection.caching is not None:
            settings.update(self._connection.caching(request.cache_key))
        return settings


def _add_sampling(settings: ModelSettings, request: ModelRequest) -> None:
    wanted, choice = request.sampling, request.tool_choice
    asked: dict[str, object] = {
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "stop_sequences": list(wanted.stop) or None,
        "seed": wanted.seed,
        "presence_penalty": wanted.presence_penalty,
        "frequency_penalty": wanted.frequency_penalty,
        "thinking": wanted.reasoning,
        "parallel_tool_calls": request.parallel_tool_calls,
        "tool_choice": None if choice is None else [choice.name] if choice.name else choice.mode,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    settings.update(cast(ModelSettings, given))


def _parameters(model: Adapter, request: ModelRequest) -> ModelRequestParameters:
    tools = [
        ToolDefinition(
            name=tool.name,
            description=tool.description,
            parameters_json_schema=dict(tool.parameters),
            strict=tool.strict,
        )
        for tool in request.tools
    ]
    if request.output_schema is None:
        return ModelRequestParameters(function_tools=tools)
    # Where the provider cannot enforce a schema, it is told about it.
    native = model.profile.get("supports_json_schema_output", False)
    return ModelRequestParameters(
        function_tools=tools,
        output_mode="native" if native else "prompted",
        output_object=OutputObjectDefinition(
            json_schema=dict(request.output_schema), name="answer", strict=request.output_strict
        ),
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


def _call_delta(event: ai.ModelResponseStreamEvent, calls: dict[int, int]) -> ToolCallDelta | None:
    """A piece of a call. `calls`: part of the answer → number of the call, filled as calls begin."""
    if isinstance(event, ai.PartStartEvent) and isinstance(event.part, ai.ToolCallPart):
        part = event.part
        index = calls.setdefault(event.index, len(calls))
        return ToolCallDelta(index, text_arguments(part.args), part.tool_call_id, part.tool_name)
    if isinstance(event, ai.PartDeltaEvent) and isinstance(event.delta, ai.ToolCallPartDelta):
        arguments = text_arguments(event.delta.args_delta)
        return ToolCallDelta(calls[event.index], arguments) if arguments else None
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

"""A request in the form of OpenAI's chat completions, with nothing in it but what our own request holds."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from urllib.parse import urlsplit

from pydantic import JsonValue

from sinas_server.backends.llm import (
    AssistantMessage,
    Message,
    ModelRequest,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolChoice,
    ToolMessage,
    ToolSpec,
    UserMessage,
)
from sinas_server.backends.llm.dialect import Dialect, sent_name
from sinas_server.backends.llm.options import OFFICIAL, ProviderOptions

Json = dict[str, JsonValue]
DIALECT = Dialect()
REASONING_MODEL = re.compile(r"(.*/)?(o\d|gpt-5)")
"""OpenAI's names of models that reason, also behind a proxy."""
ANY_OBJECT: Json = {"type": "object"}
"""The schema of an answer that may be any JSON object."""


def is_text(request: ModelRequest) -> bool:
    """Whether it holds no media, which every provider takes in a form of its own."""
    said = (message for message in request.messages if isinstance(message, UserMessage))
    return all(isinstance(part, TextPart) for message in said for part in message.parts)


def completion_body(endpoint: str, options: ProviderOptions, request: ModelRequest) -> Json:
    """The body of a request that `is_text`."""
    reasons = REASONING_MODEL.match(request.model) is not None
    wanted, choice = request.sampling, request.tool_choice
    effort = wanted.reasoning or (options.thinking if reasons and isinstance(options.thinking, str) else None)
    body: Json = {
        "model": request.model,
        "messages": list(_messages(request.messages)),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "stop": list(wanted.stop) or None,
        "seed": wanted.seed,
        "presence_penalty": wanted.presence_penalty,
        "frequency_penalty": wanted.frequency_penalty,
        "reasoning_effort": effort,
        # Other servers know the older name only; OpenAI's reasoning models the newer only.
        _limit(endpoint, reasons=reasons): request.max_tokens or options.max_tokens,
        "tools": [_tool(tool) for tool in request.tools] or None,
        "tool_choice": None if choice is None else _choice(choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _response_format(request),
    }
    return {name: value for name, value in body.items() if value is not None}


def _limit(endpoint: str, *, reasons: bool) -> str:
    official = urlsplit(endpoint).hostname == urlsplit(OFFICIAL["openai"]).hostname
    return "max_completion_tokens" if official or reasons else "max_tokens"


def _messages(messages: Sequence[Message]) -> Iterator[Json]:
    for kind, group in groupby(messages, type):
        said = list(group)
        if kind is SystemMessage:  # many servers take one at a time
            yield {"role": "system", "content": "\n\n".join(map(_text, said))}
        else:
            yield from map(_message, said)


def _text(message: Message) -> str:
    if isinstance(message, UserMessage):
        return "\n\n".join(part.text for part in message.parts if isinstance(part, TextPart))
    return message.content if isinstance(message, ToolMessage) else message.text


def _message(message: Message) -> Json:
    if isinstance(message, ToolMessage):
        return {"role": "tool", "tool_call_id": DIALECT.id_of(message), "content": message.content}
    if not isinstance(message, AssistantMessage):
        return {"role": "user", "content": _text(message)}
    if not message.tool_calls:
        return {"role": "assistant", "content": message.text}
    return {"role": "assistant", "content": message.text or None, "tool_calls": list(map(_call, message.tool_calls))}


def _call(call: ToolCall) -> JsonValue:
    function: Json = {"name": sent_name(call.name), "arguments": call.arguments}
    return {"id": DIALECT.id_of(call), "type": "function", "function": function}


def _tool(tool: ToolSpec) -> Json:
    strict: Json = {} if tool.strict is None else {"strict": tool.strict}
    function: Json = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": {**function, **strict}}


def _choice(choice: ToolChoice) -> JsonValue:
    return choice.mode if choice.name is None else {"type": "function", "function": {"name": choice.name}}


def _response_format(request: ModelRequest) -> JsonValue:
    if request.output_schema is None:
        return None
    if request.output_schema == ANY_OBJECT:
        return {"type": "json_object"}
    strict: Json = {} if request.output_strict is None else {"strict": request.output_strict}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(request.output_schema), **strict}}

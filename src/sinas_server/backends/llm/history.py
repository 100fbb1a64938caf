"""Our messages to and from pydantic-ai's, which is the form every provider adapter speaks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import quoteattr

import pydantic_ai.messages as ai
from pydantic import JsonValue, ValidationError

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    MediaPart,
    ModelRequest,
    ProviderConfig,
    ProviderError,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from sinas_server.backends.llm.dialect import Dialect, sent_name
from sinas_server.backends.llm.media import refusal
from sinas_server.kit.media import is_text

FINISH_REASONS = {"tool_call": "tool_calls"}


@dataclass(frozen=True)
class Origin:
    """A provider as an answer's own form names where it comes from."""

    name: str
    url: str | None

    def gave(self, native: ai.ModelResponse) -> bool:
        """Whether the answer is this provider's, which alone understands its thinking, signatures and the like."""
        return native.provider_name == self.name and native.provider_url in (None, self.url)


def to_history(
    config: ProviderConfig, request: ModelRequest, dialect: Dialect, origin: Origin
) -> list[ai.ModelMessage]:
    """The conversation of a request. Raises `ProviderError` for media that the model does not take."""
    history: list[ai.ModelMessage] = []
    pending: list[ai.ModelRequestPart] = []
    for message in request.messages:
        if isinstance(message, AssistantMessage):
            if pending:
                history.append(ai.ModelRequest(parts=pending))
                pending = []
            history.append(_response(message, dialect, origin))
        elif isinstance(message, SystemMessage):
            pending.append(ai.SystemPromptPart(message.text))
        elif isinstance(message, ToolMessage):
            call_id = dialect.id_of(message)
            pending.append(ai.ToolReturnPart(sent_name(message.name), message.content, tool_call_id=call_id))
        else:
            pending.append(ai.UserPromptPart(_user_content(config, request.model, message)))
    if pending:
        history.append(ai.ModelRequest(parts=pending))
    return history


def _user_content(config: ProviderConfig, model: str, message: UserMessage) -> str | list[ai.UserContent]:
    if all(isinstance(part, TextPart) for part in message.parts):
        return "\n\n".join(part.text for part in message.parts if isinstance(part, TextPart))
    return [part.text if isinstance(part, TextPart) else _media(config, model, part) for part in message.parts]


def _media(config: ProviderConfig, model: str, part: MediaPart) -> ai.UserContent:
    refused = refusal(config, model, part)
    if refused is not None:
        raise ProviderError(refused)
    details = {"detail": part.detail} if part.detail and part.kind == "image" else None
    if part.url is not None:
        # Never another sort of address: the library would fetch those itself, and that from here.
        if part.media_type.startswith("image/"):
            return ai.ImageUrl(part.url, media_type=part.media_type, vendor_metadata=details)
        return ai.DocumentUrl(part.url, media_type=part.media_type)
    if part.data is None:
        raise ProviderError(f"the {part.kind} content has neither data nor a URL")
    if is_text(part.media_type):
        return _inlined(part, part.data)
    return ai.BinaryContent(part.data, media_type=part.media_type, identifier=part.filename, vendor_metadata=details)


def _inlined(part: MediaPart, data: bytes) -> str:
    """A text file as part of the prompt, which every provider takes."""
    try:
        content = data.decode()
    except UnicodeDecodeError as error:
        raise ProviderError(f"the file {part.filename or 'content'} of type {part.media_type} is not UTF-8") from error
    return f"<file name={quoteattr(part.filename or 'file')} type={quoteattr(part.media_type)}>\n{content}\n</file>"


def _response(message: AssistantMessage, dialect: Dialect, origin: Origin) -> ai.ModelResponse:
    """The provider's own form of an answer if it still says what the message says, else one built from the message.

    Beside calls, whose thinking some providers insist on, only the text is replaced where it was changed.
    """
    ids = [dialect.id_of(call) for call in message.tool_calls]
    native = _parse_native(message.native)
    if native is not None and origin.gave(native) and (message.tool_calls or text_of(native) == message.text):
        calls = [part for part in native.parts if isinstance(part, ai.ToolCallPart)]
        said = [(call.tool_name, arguments_of(call)) for call in calls]
        if said == [(call.name, call.arguments) for call in message.tool_calls]:
            return _sendable(_saying(native, message.text), ids)
    parts: list[ai.ModelResponsePart] = [ai.TextPart(message.text)] if message.text else []
    parts.extend(
        ai.ToolCallPart(sent_name(call.name), call.arguments, tool_call_id=call_id)
        for call, call_id in zip(message.tool_calls, ids, strict=True)
    )
    return ai.ModelResponse(parts=parts)


def _parse_native(native: JsonValue) -> ai.ModelResponse | None:
    if native is None:
        return None
    try:
        (message,) = ai.ModelMessagesTypeAdapter.validate_python([native])
    except ValidationError:
        return None  # written by another version of the library: what our own fields hold is enough
    return message if isinstance(message, ai.ModelResponse) else None


def _saying(response: ai.ModelResponse, text: str) -> ai.ModelResponse:
    """The same answer with this text."""
    if text_of(response) == text:
        return response
    parts: list[ai.ModelResponsePart] = [part for part in response.parts if not isinstance(part, ai.TextPart)]
    if text:
        first = next(index for index, part in enumerate(parts) if isinstance(part, ai.ToolCallPart))
        parts.insert(first, ai.TextPart(text))
    return replace(response, parts=parts)


def _sendable(response: ai.ModelResponse, ids: Sequence[str]) -> ai.ModelResponse:
    """The same answer with the ids under which the results will be given, and names that the provider takes."""
    left = iter(ids)
    parts = [_sendable_call(part, next(left)) if isinstance(part, ai.ToolCallPart) else part for part in response.parts]
    return replace(response, parts=parts)


def _sendable_call(call: ai.ToolCallPart, call_id: str) -> ai.ToolCallPart:
    name = sent_name(call.tool_name)
    if name == call.tool_name:
        return replace(call, tool_call_id=call_id)
    return ai.ToolCallPart(name, call.args, tool_call_id=call_id)


def text_of(response: ai.ModelResponse) -> str:
    """The whole text of an answer."""
    return "".join(part.content for part in response.parts if isinstance(part, ai.TextPart))


def arguments_of(call: ai.ToolCallPart) -> str:
    """The arguments as the model wrote them; `{}` when it wrote nothing."""
    return text_arguments(call.args) or "{}"


def text_arguments(arguments: str | Mapping[str, object] | None) -> str:
    """Arguments, or a piece of them, as JSON text."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":")) if arguments else ""


def to_answer(response: ai.ModelResponse) -> Answer:
    """A provider's finished answer in our form."""
    calls = tuple(
        ToolCall(part.tool_call_id, part.tool_name, arguments_of(part))
        for part in response.parts
        if isinstance(part, ai.ToolCallPart)
    )
    reason = response.finish_reason or ("tool_call" if calls else "stop")
    usage = response.usage
    return Answer(
        text=text_of(response),
        tool_calls=calls,
        thinking="".join(part.content for part in response.parts if isinstance(part, ai.ThinkingPart)),
        native=ai.ModelMessagesTypeAdapter.dump_python([response], mode="json")[0],
        usage=Usage(
            prompt_tokens=usage.input_tokens,
            completion_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        ),
        finish_reason=FINISH_REASONS.get(reason, reason),
    )

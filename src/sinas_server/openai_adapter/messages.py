"""OpenAI's messages as the port to the models, and as chats, take them."""

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter, ValidationError

from sinas_server.backends.llm import AssistantMessage, Message, SystemMessage, ToolCall, ToolMessage, UserMessage
from sinas_server.backends.llm import MediaPart as MediaGiven
from sinas_server.backends.llm import TextPart as TextGiven
from sinas_server.backends.llm.media import refusal
from sinas_server.chats.content import Content, ContentPart, Text, sent_parts
from sinas_server.kernel.errors import InvalidError, Location
from sinas_server.openai_adapter.request import (
    AudioPart,
    ChatMessage,
    ImageSourcePart,
    ImageUrlPart,
    Part,
    RefusalPart,
    TextPart,
)
from sinas_server.providers.resolve import Resolved

TEXT: TypeAdapter[str] = TypeAdapter(Text)
PARTS: TypeAdapter[list[ContentPart]] = TypeAdapter(list[ContentPart])


def text_of(message: ChatMessage) -> str:
    """The text of a message; other parts are left out."""
    if isinstance(message.content, str) or message.content is None:
        return message.content or ""
    texts = (part.text if isinstance(part, TextPart) else _refusal(part) for part in message.content)
    return "\n".join(filter(None, texts))


def _refusal(part: Part) -> str:
    return part.refusal if isinstance(part, RefusalPart) else ""


def content_of(message: ChatMessage, at: Location) -> Content:
    """A user's message as chats keep it. Raises `InvalidError` naming the part, below `at`."""
    given = message.content
    if not given:
        raise InvalidError([((*at, "content"), "must not be empty")])
    try:
        if isinstance(given, str):
            return TEXT.validate_python(given)
        return PARTS.validate_python([_part(part, (*at, "content", index)) for index, part in enumerate(given)])
    except ValidationError as error:
        raise InvalidError([_problem(item["loc"], item["msg"], at) for item in error.errors()]) from error


def _sent(target: Resolved, content: Content, at: Location) -> tuple[TextGiven | MediaGiven, ...]:
    try:
        parts = sent_parts(content)
    except ValueError as error:
        raise InvalidError([((*at, "content"), str(error))]) from error
    for index, part in enumerate(parts):
        refused = refusal(target.config, target.model, part) if isinstance(part, MediaGiven) else None
        if refused is not None:
            raise InvalidError([((*at, "content", index), refused)])
    return parts


def _problem(found: tuple[int | str, ...], message: str, at: Location) -> tuple[Location, str]:
    index = next((part for part in found if isinstance(part, int)), None)
    return ((*at, "content") if index is None else (*at, "content", index)), message.removeprefix("Value error, ")


def _part(part: Part, at: Location) -> Mapping[str, object]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "text", "text": part.refusal}
    if isinstance(part, ImageUrlPart):
        return {"type": "image", "image": part.image_url.url, "detail": part.image_url.detail}
    if isinstance(part, ImageSourcePart):
        return {"type": "image", "image": _address(part, at)}
    if isinstance(part, AudioPart):
        return {"type": "audio", "data": part.input_audio.data, "format": part.input_audio.format}
    file = part.file
    return {"type": "file", "file_data": file.file_data, "file_id": file.file_id, "filename": file.filename}


def _address(part: ImageSourcePart, at: Location) -> str:
    source = part.source
    if source.type == "url" and source.url:
        return source.url
    if source.type == "base64" and source.data and source.media_type:
        return f"data:{source.media_type};base64,{source.data}"
    raise InvalidError([((*at, "source"), "needs url, or media_type and data")])


def to_messages(target: Resolved, messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The conversation for a provider. Raises `InvalidError` with the place, also of what the model does not take."""
    known: dict[str, str] = {}
    found: list[Message] = []
    for index, message in enumerate(messages):
        at = message.place(index)
        if message.role in ("system", "developer"):
            found.append(SystemMessage(text_of(message)))
        elif message.role == "user":
            found.append(UserMessage(_sent(target, content_of(message, at), at)))
        elif message.role == "assistant":
            calls = [
                ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()
            ]
            known.update((call.id, call.name) for call in calls)
            found.append(AssistantMessage(text_of(message), tuple(calls)))
        else:
            found.append(_result(message, known, at))
    return tuple(found)


def _result(message: ChatMessage, known: Mapping[str, str], at: Location) -> ToolMessage:
    name = known.get(message.tool_call_id or "")
    if message.tool_call_id is None or name is None:
        field = "tool_call_id" if "messages" in at else "call_id"  # of `/v1/responses`
        raise InvalidError([((*at, field), "must be the id of a call before it")])
    return ToolMessage(message.tool_call_id, name, text_of(message))

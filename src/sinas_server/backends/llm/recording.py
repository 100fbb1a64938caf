"""What a model was asked and said, as JSON that can be kept, compared and said again.

What differs from run to run is left out: the ids of calls and every UUID become `<id 1>`, `<id 2>` in their order, and
get the values of the moment when the answer is said again. The provider's own form of an answer is not kept.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    Event,
    MediaPart,
    Message,
    ModelRequest,
    Part,
    ProviderError,
    SystemMessage,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ToolCall,
    ToolMessage,
    Usage,
)
from sinas_server.kit.difference import differences

PIECE = 16
"""Characters of each piece in which an answer is said again."""
MOST_TOLD = 8
_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"

Asked = dict[str, JsonValue]
"""What a model was asked: `model`, `settings`, `tools` by name, and `messages`."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SaidCall(_Part):
    """A call in an answer."""

    name: str = Field(max_length=1000, description="The tool, by the name sent to the model.")
    arguments: str = Field(description="JSON text as the model wrote it.")


class SaidUsage(_Part):
    """The tokens that an answer took."""

    prompt_tokens: int = Field(default=0, ge=0, description="Read.")
    completion_tokens: int = Field(default=0, ge=0, description="Written.")
    cache_read_tokens: int = Field(default=0, ge=0, description="Of those read, from a cache.")
    cache_write_tokens: int = Field(default=0, ge=0, description="Of those read, into a cache.")


class Said(_Part):
    """What a model said, or why it failed."""

    text: str = Field(default="", description="Its text.")
    thinking: str = Field(default="", description="Its visible reasoning.")
    tool_calls: list[SaidCall] = Field(default=[], max_length=1000, description="The calls it asked for.")
    usage: SaidUsage = Field(default=SaidUsage(), description="The tokens it took.")
    finish_reason: str = Field(default="stop", max_length=64, description="Why it ended.")
    error: str | None = Field(default=None, description="Why the provider failed; then there is nothing else.")
    status: int | None = Field(default=None, description="The HTTP status of that failure.")


@dataclass(frozen=True)
class Ids:
    """The ids in a request, in the order in which they first appear."""

    known: Mapping[str, str]
    """Id → what stands for it."""

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "Ids":
        """The ids of calls, and the UUIDs in texts."""
        calls = {
            call.id for message in messages if isinstance(message, AssistantMessage) for call in message.tool_calls
        }
        pattern = "|".join(
            [_UUID, *(re.escape(call) for call in sorted(calls, key=len, reverse=True) if len(call) > 5)]
        )
        found = dict.fromkeys(match for text in _texts(messages) for match in re.findall(pattern, text))
        return cls({written: f"<id {number}>" for number, written in enumerate(found, 1)})

    def hide(self, text: str) -> str:
        """A text with what stands for the ids."""
        return _replaced(text, self.known)

    def show(self, text: str) -> str:
        """A text with the ids again."""
        return _replaced(text, {mark: written for written, mark in self.known.items()})


def _replaced(text: str, by: Mapping[str, str]) -> str:
    if not by:
        return text
    pattern = "|".join(map(re.escape, sorted(by, key=len, reverse=True)))
    return re.sub(pattern, lambda found: by[found[0]], text)


def _texts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        if isinstance(message, ToolMessage):
            yield message.content
        elif isinstance(message, SystemMessage):
            yield message.text
        elif isinstance(message, AssistantMessage):
            yield message.text
            yield from (call.arguments for call in message.tool_calls)
        else:
            yield from (part.text for part in message.parts if isinstance(part, TextPart))


def as_asked(request: ModelRequest) -> Asked:
    """What the model sees of a request."""
    ids = Ids.of(request.messages)
    settings: dict[str, JsonValue] = {
        **asdict(request.sampling),
        "stop": list(request.sampling.stop) or None,
        "max_tokens": request.max_tokens,
        "output_schema": None if request.output_schema is None else dict(request.output_schema),
        "tool_choice": None if request.tool_choice is None else asdict(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
    }
    return {
        "model": request.model,
        "settings": {key: value for key, value in settings.items() if value is not None},
        "tools": {
            tool.name: {"description": tool.description, "parameters": dict(tool.parameters)} for tool in request.tools
        },
        "messages": [_message(message, ids) for message in request.messages],
    }


def _message(message: Message, ids: Ids) -> dict[str, JsonValue]:
    if isinstance(message, SystemMessage):
        return {"role": "system", "text": ids.hide(message.text)}
    if isinstance(message, ToolMessage):
        return {"role": "tool", "name": message.name, "result": _parsed(ids.hide(message.content))}
    if isinstance(message, AssistantMessage):
        calls: list[JsonValue] = [
            {"name": call.name, "arguments": _parsed(ids.hide(call.arguments))} for call in message.tool_calls
        ]
        return {"role": "assistant", "text": ids.hide(message.text), **({"calls": calls} if calls else {})}
    if len(message.parts) == 1 and isinstance(message.parts[0], TextPart):
        return {"role": "user", "text": ids.hide(message.parts[0].text)}
    return {"role": "user", "parts": [_part(part, ids) for part in message.parts]}


def _part(part: Part, ids: Ids) -> JsonValue:
    if isinstance(part, TextPart):
        return ids.hide(part.text)
    return _media(part)


def _media(part: MediaPart) -> JsonValue:
    """Media by what they are and a digest: a recording is no place for pictures."""
    where = part.url if part.data is None else hashlib.sha256(part.data).hexdigest()
    return {"kind": part.kind, "media_type": part.media_type, "filename": part.filename, "content": where}


def _parsed(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value


def fingerprint(asked: Asked) -> str:
    """The same for two requests in which a model sees the same; SHA-256 in hex."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def as_said(answer: Answer, request: ModelRequest) -> Said:
    """An answer to keep."""
    ids = Ids.of(request.messages)
    return Said(
        text=ids.hide(answer.text),
        thinking=ids.hide(answer.thinking),
        tool_calls=[SaidCall(name=call.name, arguments=ids.hide(call.arguments)) for call in answer.tool_calls],
        usage=SaidUsage(**asdict(answer.usage)),
        finish_reason=answer.finish_reason,
    )


def as_failed(error: ProviderError) -> Said:
    """A failure to keep."""
    return Said(error=str(error), status=error.status, finish_reason="error")


def say_again(said: Said, request: ModelRequest) -> list[Event]:
    """The events of a kept answer. Raises `ProviderError` if it was a failure; none that is worth another try."""
    if said.error is not None:
        raise ProviderError(said.error, status=said.status)
    ids, place = Ids.of(request.messages), len(request.messages)
    text, thinking = ids.show(said.text), ids.show(said.thinking)
    calls = tuple(
        ToolCall(f"recorded_{place}_{index}", call.name, ids.show(call.arguments))
        for index, call in enumerate(said.tool_calls)
    )
    answer = Answer(text, calls, thinking, None, Usage(**said.usage.model_dump()), said.finish_reason)
    return [*map(ThinkingDelta, _pieces(thinking)), *map(TextDelta, _pieces(text)), answer]


def _pieces(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def unlike(asked: Asked, recorded: Sequence[Asked]) -> str:
    """In what a request differs from the most similar one of a recording, a line each."""
    found = [list(differences(known, asked, path="")) for known in recorded]
    if not found:
        return "the recording is empty"
    shared = [_shared(known, asked) for known in recorded]
    best = max(range(len(found)), key=lambda index: (shared[index], -len(found[index])))
    told = [line.removeprefix(".") for line in found[best]]
    more = [f"and {len(told) - MOST_TOLD} more"] if len(told) > MOST_TOLD else []
    return "\n".join([*told[:MOST_TOLD], *more])


def _shared(mine: Asked, theirs: Asked) -> int:
    """With how many equal messages two requests begin, and whether they have as many."""
    ours, others = mine.get("messages"), theirs.get("messages")
    if not isinstance(ours, list) or not isinstance(others, list):
        return 0
    alike = next((i for i, (a, b) in enumerate(zip(ours, others, strict=False)) if a != b), min(len(ours), len(others)))
    return 2 * alike + (len(ours) == len(others))

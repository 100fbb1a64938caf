"""Chat completions as OpenAI writes them, whole and in chunks."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from time import time
from typing import cast
from uuid import uuid4

import orjson
from pydantic import JsonValue

from sinas_server.backends.llm import Answer, TextDelta, ThinkingDelta, ToolCall, ToolCallDelta, Usage
from sinas_server.kernel.errors import ConflictError, SinasError
from sinas_server.kit.sse import PING
from sinas_server.openai_adapter.errors import event_of
from sinas_server.openai_adapter.pieces import Final, Piece, Pieces

Json = dict[str, JsonValue]
DONE = b"data: [DONE]\n\n"
REASONS = frozenset({"stop", "length", "tool_calls", "content_filter"})


class RestartedError(ConflictError):
    """What was streamed already is not how the answer goes; a stream of OpenAI's cannot take words back."""

    code = "answer_restarted"

    def __init__(self) -> None:
        super().__init__("the answer was interrupted and began anew with other words: discard it and ask again")


def shown_usage(usage: Usage) -> Json:
    """Tokens as OpenAI counts them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
    }


def _reason(answer: Answer) -> str:
    if answer.tool_calls:
        return "tool_calls"
    return answer.finish_reason if answer.finish_reason in REASONS else "stop"


def _shown_call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def completion(model: str, final: Final) -> Json:
    """A whole answer."""
    answer = final.answer
    message: Json = {
        "role": "assistant",
        "content": answer.text or (None if answer.tool_calls else ""),
        "refusal": None,
    }
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if answer.tool_calls:
        message["tool_calls"] = [_shown_call(call) for call in answer.tool_calls]
    choice: Json = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(answer)}
    extension: Json = {"sinas": dict(final.extension)} if final.extension else {}
    return {
        "id": f"chatcmpl-{uuid4().hex}",
        "object": "chat.completion",
        "created": int(time()),
        "model": model,
        "choices": [choice],
        "usage": shown_usage(answer.usage),
        **extension,
    }


@dataclass
class Chunks:
    """Writes an answer in chunks."""

    model: str
    include_usage: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time()))
    _text: list[str] = field(default_factory=list)
    _arguments: dict[int, str] = field(default_factory=dict)

    async def whole(self, final: Final) -> Json:
        """The same in one piece."""
        return completion(self.model, final)

    async def stream(self, groups: Pieces) -> AsyncGenerator[bytes, None]:
        """The events; an error ends them, without `[DONE]`."""
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})
        try:
            async with aclosing(groups):
                async for group in groups:
                    yield b"".join(self._group(group)) or PING
        except SinasError as error:
            yield b"data: " + orjson.dumps(event_of(error)) + b"\n\n"
            return
        yield DONE

    def _group(self, group: list[Piece]) -> list[bytes]:
        """Text that came together goes together."""
        blocks: list[bytes] = []
        text = "".join(piece.text for piece in group if isinstance(piece, TextDelta))
        thinking = "".join(piece.text for piece in group if isinstance(piece, ThinkingDelta))
        if thinking:
            blocks.append(self._chunk({"reasoning_content": thinking}))
        if text:
            self._text.append(text)
            blocks.append(self._chunk({"content": text}))
        for piece in group:
            if isinstance(piece, ToolCallDelta):
                blocks.append(self._call(piece))
            elif isinstance(piece, Final):
                blocks += self._end(piece)
        return blocks

    def _call(self, piece: ToolCallDelta) -> bytes:
        self._arguments[piece.index] = self._arguments.get(piece.index, "") + piece.arguments
        call: Json = {"index": piece.index, "function": {"arguments": piece.arguments}}
        if piece.id is not None:
            call = {"index": piece.index, "id": piece.id, "type": "function"}
            call["function"] = {"name": piece.name, "arguments": piece.arguments}
        return self._chunk({"tool_calls": [call]})

    def _end(self, final: Final) -> list[bytes]:
        """What is still to be said, why it ends, and the tokens if they are wanted."""
        answer, said = final.answer, "".join(self._text)
        if not answer.text.startswith(said):
            raise RestartedError
        rest = answer.text[len(said) :]
        blocks = [self._chunk({"content": rest})] if rest else []
        for index, call in enumerate(answer.tool_calls):
            known = self._arguments.get(index)
            if known is None:
                blocks.append(self._call(ToolCallDelta(index, call.arguments, call.id, call.name)))
            elif known != call.arguments and call.arguments.startswith(known):
                blocks.append(self._call(ToolCallDelta(index, call.arguments[len(known) :])))
        extension: Json = {"sinas": dict(final.extension)} if final.extension else {}
        blocks.append(self._chunk({}, _reason(answer), extension))
        if self.include_usage:
            blocks.append(self._block({"choices": [], "usage": shown_usage(answer.usage)}))
        return blocks

    def _chunk(self, delta: Json, reason: str | None = None, more: Mapping[str, JsonValue] | None = None) -> bytes:
        choice: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage: Json = {"usage": None} if self.include_usage else {}
        return self._block({"choices": [choice], **usage, **(more or {})})

    def _block(self, content: Mapping[str, object]) -> bytes:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return b"data: " + orjson.dumps({**head, **cast(Json, content)}) + b"\n\n"

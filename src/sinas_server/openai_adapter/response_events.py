"""Responses as OpenAI writes them: the object, and the events that lead to it."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from time import time
from uuid import uuid4

import orjson
from pydantic import JsonValue

from sinas_server.backends.llm import Answer, TextDelta, ToolCall, ToolCallDelta, Usage
from sinas_server.kernel.errors import SinasError
from sinas_server.kit.sse import PING
from sinas_server.openai_adapter.completions import RestartedError
from sinas_server.openai_adapter.pieces import Final, Piece, Pieces
from sinas_server.openai_adapter.response_request import ResponseRequest

Json = dict[str, JsonValue]
CUT_SHORT = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Why an answer ended → why a response is incomplete."""
Keep = Callable[[Json, Final], Awaitable[None]]
"""Stores a response, if it is to be stored."""


def new_id(kind: str) -> str:
    """An id as OpenAI's look: `resp_...`."""
    return f"{kind}_{uuid4().hex}"


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(item_id: str, status: str, content: list[JsonValue]) -> Json:
    return {"type": "message", "id": item_id, "status": status, "role": "assistant", "content": content}


def _call(item_id: str, status: str, call: ToolCall) -> Json:
    named = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"type": "function_call", "id": item_id, "status": status, **named}


@dataclass
class _Item:
    """A piece of the output while it is written."""

    index: int
    id: str
    call: ToolCall | None = None
    text: str = ""


@dataclass
class ResponseWriter:
    """Writes one response, whole or as events."""

    body: ResponseRequest
    model: str
    keep: Keep
    """Called before the end is told."""
    id: str = field(default_factory=lambda: new_id("resp"))
    created: int = field(default_factory=lambda: int(time()))
    _sequence: int = 0
    _items: dict[int, _Item] = field(default_factory=dict)
    """By call; the message is number -1."""

    async def whole(self, final: Final) -> Json:
        """The response."""
        answer = final.answer
        if answer.text or not answer.tool_calls:
            self._add(-1, None)
        for number, call in enumerate(answer.tool_calls):
            self._add(number, call)
        told = self._finished(final)
        await self.keep(told, final)
        return told

    async def stream(self, groups: Pieces) -> AsyncGenerator[bytes, None]:
        """The events; the last says how it ended."""
        begun = self._object("in_progress", [], None)
        yield self._event("response.created", {"response": begun})
        yield self._event("response.in_progress", {"response": begun})
        try:
            async with aclosing(groups):
                async for group in groups:
                    yield b"".join([block for piece in group for block in await self._piece(piece)]) or PING
        except SinasError as error:
            failed = self._object("failed", [], None)
            failed["error"] = {"code": error.code, "message": error.detail}
            yield self._event("response.failed", {"response": failed})

    async def _piece(self, piece: Piece) -> list[bytes]:
        if isinstance(piece, TextDelta):
            return self._say(piece.text)
        if isinstance(piece, ToolCallDelta):
            return self._write(piece.index, piece.arguments, piece)
        return await self._end(piece) if isinstance(piece, Final) else []

    def _add(self, number: int, call: ToolCall | None) -> _Item:
        item = _Item(len(self._items), new_id("msg" if call is None else "fc"), call)
        self._items[number] = item
        return item

    def _say(self, text: str) -> list[bytes]:
        blocks: list[bytes] = []
        item = self._items.get(-1)
        if item is None:
            item = self._add(-1, None)
            blocks.append(self._about(item, "response.output_item.added", item=_message(item.id, "in_progress", [])))
            blocks.append(self._within(item, "response.content_part.added", part=_text("")))
        item.text += text
        return [*blocks, self._within(item, "response.output_text.delta", delta=text, logprobs=[])]

    def _write(self, number: int, arguments: str, begun: ToolCallDelta | ToolCall) -> list[bytes]:
        blocks: list[bytes] = []
        item = self._items.get(number)
        if item is None:
            item = self._add(number, ToolCall(begun.id or "", begun.name or "", ""))
            added = _call(item.id, "in_progress", ToolCall(begun.id or "", begun.name or "", ""))
            blocks.append(self._about(item, "response.output_item.added", item=added))
        item.text += arguments
        if arguments:
            blocks.append(self._about(item, "response.function_call_arguments.delta", item_id=item.id, delta=arguments))
        return blocks

    async def _end(self, final: Final) -> list[bytes]:
        """What is still to be said, the end of every item, and of the whole."""
        answer = final.answer
        said = self._items[-1].text if -1 in self._items else ""
        if not answer.text.startswith(said):
            raise RestartedError
        blocks: list[bytes] = []
        if len(answer.text) > len(said) or not (answer.tool_calls or said):
            blocks += self._say(answer.text[len(said) :])
        for number, call in enumerate(answer.tool_calls):
            known = self._items[number].text if number in self._items else ""
            rest = call.arguments[len(known) :] if call.arguments.startswith(known) else ""
            blocks += self._write(number, rest, call)
            self._items[number].call = call
        told = self._finished(final)
        for item, shown in zip(self._ordered(), self._output(answer), strict=True):
            if item.call is None:
                blocks.append(self._within(item, "response.output_text.done", text=answer.text, logprobs=[]))
                blocks.append(self._within(item, "response.content_part.done", part=_text(answer.text)))
            else:
                name, arguments = item.call.name, item.call.arguments
                done = "response.function_call_arguments.done"
                blocks.append(self._about(item, done, item_id=item.id, name=name, arguments=arguments))
            blocks.append(self._about(item, "response.output_item.done", item=shown))
        await self.keep(told, final)
        return [*blocks, self._event(f"response.{told['status']}", {"response": told})]

    def _ordered(self) -> list[_Item]:
        return sorted(self._items.values(), key=lambda item: item.index)

    def _output(self, answer: Answer) -> list[JsonValue]:
        return [
            _message(item.id, "completed", [_text(answer.text)])
            if item.call is None
            else _call(item.id, "completed", item.call)
            for item in self._ordered()
        ]

    def _finished(self, final: Final) -> Json:
        answer = final.answer
        reason = CUT_SHORT.get(answer.finish_reason)
        told = self._object("incomplete" if reason else "completed", self._output(answer), answer.usage)
        told["incomplete_details"] = {"reason": reason} if reason else None
        return {**told, "sinas": dict(final.extension)} if final.extension else told

    def _object(self, status: str, output: list[JsonValue], usage: Usage | None) -> Json:
        body = self.body
        shown = body.model_dump(
            mode="json",
            by_alias=True,
            include={"instructions", "max_output_tokens", "previous_response_id", "store", "temperature", "top_p"},
        )
        given = body.model_dump(mode="json", by_alias=True, exclude_none=True, include={"tools", "text", "reasoning"})
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": body.model_dump(mode="json", include={"tool_choice"})["tool_choice"] or "auto",
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "metadata": dict(body.metadata or {}),
            "usage": None if usage is None else _usage(usage),
            **shown,
            **given,
        }

    def _within(self, of: _Item, kind: str, /, **fields: JsonValue) -> bytes:
        return self._about(of, kind, item_id=of.id, content_index=0, **fields)

    def _about(self, of: _Item, kind: str, /, **fields: JsonValue) -> bytes:
        return self._event(kind, {"output_index": of.index, **fields})

    def _event(self, kind: str, fields: Json) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: ".encode() + orjson.dumps(data) + b"\n\n"

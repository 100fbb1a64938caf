"""Asking an agent: a durable turn in a chat, told as one answer. Its own tools stay inside."""

from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import insert

from sinas_server.agents.kind import AgentSpec
from sinas_server.backends.llm import Answer, TextDelta, Usage
from sinas_server.backends.stream import START, StreamEvent
from sinas_server.chats.attachments import accept, attach
from sinas_server.chats.chat import Wanted, create_chat, may_talk, own_chat
from sinas_server.chats.content import Kept
from sinas_server.chats.events import payload
from sinas_server.chats.follow import happenings
from sinas_server.chats.record import last_turn, read_turn
from sinas_server.chats.send import TurnFailedError
from sinas_server.chats.start import Asked, Said, Started, say_now, start_turn
from sinas_server.chats.tables import MessageRow
from sinas_server.chats.talk import read_talk
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, InvalidError, Location, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.openai_adapter.errors import ParameterError
from sinas_server.openai_adapter.messages import content_of, text_of
from sinas_server.openai_adapter.pieces import Final, Piece, Pieces
from sinas_server.openai_adapter.request import ChatCompletionRequest

KEPT_SECONDS = 24 * 3600
"""How long a chat lives that no `X-Chat-ID` asked for: such clients send the whole conversation each time."""
HEADER = "X-Chat-ID"


class GoneOnError(ConflictError):
    """Something else was said in the chat since, or it is gone."""


@dataclass(frozen=True)
class Where:
    """The chat in which an agent is to answer."""

    chat_id: str
    after: UUID | None = None
    """The turn that must be its last."""


async def start_agent(
    runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], body: ChatCompletionRequest, where: Where | None
) -> Started:
    """Have the agent answer the last message, in the chat named or in one made of the messages before it.

    The new chat is archived and is deleted after a day. Raises 400, 404 and 422 naming what is wrong, and
    `GoneOnError`.
    """
    _refuse_what_agents_do_themselves(body)
    last: Location = body.messages[-1].place(len(body.messages) - 1) if body.messages else ("body", "messages")
    if not body.messages or body.messages[-1].role != "user":
        raise ParameterError(str(last[1]), "the last message must be the user's: it is what the agent answers")
    content = content_of(body.messages[-1], last)
    if where is not None:
        found = await _chat_of(runtime, caller, agent, where)
        asked = Asked(content, (*last, "content"), when_busy=body.when_busy)
        if where.after is None:
            return await say_now(runtime, caller, found, asked)
        kept = await accept(runtime, caller, agent, content, asked.at)
        async with runtime.database.unit() as db:
            chat = await own_chat(db, caller, found)
            turn = await last_turn(db, chat)
            if turn is None or turn.id != where.after:
                raise GoneOnError("something else was said in this chat since")
            return await start_turn(db, runtime, caller, chat, Said(kept))
    earlier = [await _earlier(runtime, caller, agent, body, index) for index in range(len(body.messages) - 1)]
    said = Said(await accept(runtime, caller, agent, content, (*last, "content")))
    wanted = Wanted(input=body.input or {}, expires_in=KEPT_SECONDS, archived=True)
    async with runtime.database.unit() as db:
        chat = await create_chat(db, caller, agent, wanted)
        if earlier:
            rows = [
                {"chat_id": chat.id, "role": role, "content": kept.text, "parts": kept.parts} for role, kept in earlier
            ]
            await db.execute(insert(MessageRow), rows)
            for _, kept in earlier:
                await attach(db, chat.id, kept.parts)
        return await start_turn(db, runtime, caller, chat, said)


def _refuse_what_agents_do_themselves(body: ChatCompletionRequest) -> None:
    if body.tools:
        raise ParameterError("tools", "an agent uses its own tools; client-side tools work with provider models")
    if body.response_format is not None and body.response_format.type != "text":
        raise ParameterError("response_format", "an agent answers by its own output_schema")


async def _chat_of(runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], where: Where) -> UUID:
    try:
        known = UUID(where.chat_id)
    except ValueError as error:
        raise InvalidError([(("header", HEADER), "must be the id of a chat")]) from error
    talk = await read_talk(runtime.database, known)
    if talk is None and where.after is not None:
        raise GoneOnError("the chat is gone")
    if talk is None or not may_talk(caller, talk.chat.user_id):
        raise NotFoundError("chat not found")
    if talk.chat.agent_id != agent.id:
        raise ParameterError(HEADER, "this chat is with another agent")
    return known


async def _earlier(
    runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], body: ChatCompletionRequest, index: int
) -> tuple[str, Kept]:
    """A message of before as the chat keeps it: whose, and what.

    The agent's instructions are its owner's alone: those of the client count as said by the user.
    """
    message = body.messages[index]
    at = message.place(index)
    if message.role == "tool" or message.tool_calls:
        raise InvalidError([(at, "an agent takes no calls or results of client-side tools")])
    if message.role == "assistant":
        return "assistant", Kept(text_of(message))
    return "user", await accept(runtime, caller, agent, content_of(message, at), (*at, "content"))


@dataclass
class _Heard:
    """What of a turn was told so far."""

    texts: dict[int, str] = field(default_factory=dict)
    """Answer (by its place on the channel) → its text."""
    approvals: list[Mapping[str, JsonValue]] = field(default_factory=list)
    questions: list[Mapping[str, JsonValue]] = field(default_factory=list)
    """What the user is asked."""
    restarted: bool = False

    def text(self) -> str:
        return "\n\n".join(text for _, text in sorted(self.texts.items()) if text)

    def add(self, event: StreamEvent) -> list[Piece]:
        """What there is to pass on. After a restart nothing, until the end shows whether what was said still holds."""
        place = event.position.step
        if event.name == "restart":
            self.restarted, self.texts[place] = True, ""
        elif event.name == "approval_required":
            self.approvals.append(_asked(event))
        elif event.name == "input_required":
            self.questions.append(_asked(event))
        elif event.name == "message":
            text = str(payload(event)["content"])
            gap = "\n\n" if place not in self.texts and any(self.texts.values()) else ""
            self.texts[place] = self.texts.get(place, "") + text
            return [] if self.restarted or not text else [TextDelta(gap + text)]
        return []


async def agent_answer(runtime: Runtime, started: Started) -> Pieces:
    """The turn as one answer. Raises `TurnFailedError`."""
    heard = _Heard()
    async with aclosing(happenings(runtime, started.channel_id, START)) as events:
        async for event in events:
            if event is None:
                yield []
            elif event.name == "error":
                raise TurnFailedError(str(payload(event)["error"]))
            elif event.name == "done":
                yield [await _end(runtime, started, heard)]
            elif pieces := heard.add(event):
                yield pieces


async def _end(runtime: Runtime, started: Started, heard: _Heard) -> Final:
    turn = await read_turn(runtime.database.read, started.turn_id)
    counts = {key: value for key, value in (turn.usage if turn else {}).items() if isinstance(value, int)}
    usage = Usage(
        *(counts.get(f"{name}_tokens", 0) for name in ("prompt", "completion", "cache_read", "cache_write")),
    )
    text, chat_id = heard.text(), str(started.chat_id)
    if not (heard.approvals or heard.questions):
        return Final(Answer(text, usage=usage), {"chat_id": chat_id, "status": "completed"})
    told = "\n\n".join(filter(None, (text, *_notices(chat_id, heard))))
    extension = {
        "chat_id": chat_id,
        "status": "input_required",
        "pending_approvals": heard.approvals,
        "pending_inputs": heard.questions,
    }
    return Final(Answer(told, usage=usage), cast(dict[str, JsonValue], extension))


def _asked(event: StreamEvent) -> Mapping[str, JsonValue]:
    return {key: value for key, value in payload(event).items() if key != "type"}


def _notices(chat_id: str, heard: _Heard) -> Iterator[str]:
    """What the user is asked, for clients that show text alone."""
    if heard.approvals:
        names = ", ".join(f"{call['function_namespace']}/{call['function_name']}" for call in heard.approvals)
        first = heard.approvals[0]["tool_call_id"]
        yield f"[The agent waits for approval of {names}: POST /chats/{chat_id}/approve-tool/{first}]"
    for asked in heard.questions:
        options = cast(list[str] | None, asked["options"])
        choices = f" ({', '.join(options)})" if options else ""
        where = f"POST /chats/{chat_id}/pending-input/{asked['tool_call_id']}"
        yield f"[The agent asks: {asked['question']}{choices} {where}]"

"""Responses: like chat completions, and kept, so that the next request can go on from one of them."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from pydantic import JsonValue
from sqlalchemy import ColumnElement, delete, func, insert, literal_column, select

from sinas_server.agents.kind import AgentSpec
from sinas_server.backends.llm import Answer
from sinas_server.chats.chat import CHATS
from sinas_server.chats.start import Started
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kit.clock import now
from sinas_server.openai_adapter.agent_answer import GoneOnError, Where, agent_answer, start_agent
from sinas_server.openai_adapter.errors import ParameterError
from sinas_server.openai_adapter.models import find_target
from sinas_server.openai_adapter.pieces import Final, Pieces
from sinas_server.openai_adapter.provider_answer import model_request, provider_answer
from sinas_server.openai_adapter.request import ChatMessage, FunctionCall, ToolCall
from sinas_server.openai_adapter.response_request import ResponseRequest, as_completion, messages_of
from sinas_server.openai_adapter.stored_media import with_bytes, without_bytes
from sinas_server.openai_adapter.tables import ResponseBlobRow, ResponseRow

KEPT_DAYS = 30
LONGEST_CHAIN = 500
"""The most responses that one goes on from."""


@dataclass(frozen=True)
class Conversation:
    """What a request goes on from, what it adds, and its answer on the way."""

    model: str
    added: list[ChatMessage]
    pieces: Pieces
    started: Started | None = None


async def converse(runtime: Runtime, caller: Caller, body: ResponseRequest) -> Conversation:
    """Begin to answer. Raises `SinasError` for what cannot be."""
    chain = await _chain(runtime, caller, body.previous_response_id)
    added = messages_of(body)
    target = await find_target(runtime, caller, body.model)
    if isinstance(target, Resource):
        started = await _start(runtime, caller, target, body, (chain, added))
        return Conversation(body.model or f"agent:{target.ref}", added, agent_answer(runtime, started), started)
    request = model_request(target, as_completion(body, [*await _earlier(runtime, chain), *added]))
    return Conversation(body.model or target.model, added, provider_answer(runtime, caller, target, request))


async def _earlier(runtime: Runtime, chain: Sequence[ResponseRow]) -> list[ChatMessage]:
    """What was said in the responses before."""
    return [message for row in chain for message in await with_bytes(runtime, row.messages)]


Parts = tuple[Sequence[ResponseRow], list[ChatMessage]]
"""The responses before, and what is added to them."""


async def _start(
    runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], body: ResponseRequest, parts: Parts
) -> Started:
    """Go on in the chat of the response before, if nothing was said there since; else in one made of the messages."""
    chain, added = parts
    last = chain[-1] if chain else None
    if last is not None and last.chat_id and last.turn_id and len(added) == 1 and not body.instructions:
        where = Where(str(last.chat_id), last.turn_id)
        with suppress(GoneOnError):
            return await start_agent(runtime, caller, agent, as_completion(body, added), where)
    everything = [*await _earlier(runtime, chain), *added]
    return await start_agent(runtime, caller, agent, as_completion(body, everything), None)


async def _chain(runtime: Runtime, caller: Caller, response_id: str | None) -> Sequence[ResponseRow]:
    """The responses that lead to one, the oldest first. Raises `ParameterError` for one that is not the caller's."""
    if response_id is None:
        return ()
    one: ColumnElement[int] = literal_column("1")
    first = select(ResponseRow.id, ResponseRow.previous_id, one.label("n"))
    steps = first.where(ResponseRow.id == response_id, *_own(caller)).cte("steps", recursive=True)
    before = select(ResponseRow.id, ResponseRow.previous_id, steps.c.n + 1)
    steps = steps.union_all(
        before.join(steps, ResponseRow.id == steps.c.previous_id).where(steps.c.n < LONGEST_CHAIN, *_own(caller))
    )
    query = select(ResponseRow).join(steps, steps.c.id == ResponseRow.id).order_by(steps.c.n.desc())
    async with runtime.database.unit() as db:
        rows = list(await db.scalars(query))
    if not rows:
        raise ParameterError("previous_response_id", f"there is no response '{response_id}' of yours any more")
    return rows


def _own(caller: Caller) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return ResponseRow.user_id == caller.id, ResponseRow.expires_at > func.now()


async def keep(
    runtime: Runtime, caller: Caller, conversation: Conversation, told: dict[str, JsonValue], final: Final
) -> None:
    """Store a response, before its end is told."""
    messages = [*conversation.added, _answered(final.answer)]
    started = conversation.started
    stored_messages, keys = await without_bytes(runtime, messages)
    row = {
        "id": told["id"],
        "user_id": caller.id,
        "previous_id": told["previous_response_id"],
        "chat_id": started and started.chat_id,
        "turn_id": started and started.turn_id,
        "messages": stored_messages,
        "body": told,
        "expires_at": now() + timedelta(days=KEPT_DAYS),
    }
    async with runtime.database.unit() as db:
        await db.execute(insert(ResponseRow).values(**row))
        if keys:
            held = [{"response_id": told["id"], "blob": key} for key in sorted(keys)]
            await db.execute(insert(ResponseBlobRow), held)


def _answered(answer: Answer) -> ChatMessage:
    calls = [
        ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for call in answer.tool_calls
    ]
    return ChatMessage(role="assistant", content=answer.text, tool_calls=calls or None)


async def stored(runtime: Runtime, caller: Caller, response_id: str) -> dict[str, JsonValue]:
    """A stored response. Raises 403, and 404 for those of others."""
    caller.require(CHATS.name, "read", caller.id)
    query = select(ResponseRow.body).where(ResponseRow.id == response_id, *_own(caller))
    rows = await runtime.database.read(query)
    if not rows:
        raise NotFoundError(f"there is no response '{response_id}'")
    return cast(dict[str, JsonValue], rows[0].body)


async def forget(runtime: Runtime, caller: Caller, response_id: str) -> None:
    """Delete a stored response. Raises 403, and 404 for those of others."""
    caller.require(CHATS.name, "delete", caller.id)
    gone = delete(ResponseRow).where(ResponseRow.id == response_id, *_own(caller)).returning(ResponseRow.id)
    if not await runtime.database.rows(gone):
        raise NotFoundError(f"there is no response '{response_id}'")


async def _forget_expired(runtime: Runtime) -> None:
    await runtime.database.rows(delete(ResponseRow).where(ResponseRow.expires_at <= func.now()))


FORGET_LOOP = Loop(name="forget old responses", every_seconds=3600, step=_forget_expired)

"""Asking an agent in one request: the conversation is found by its key, or begun."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import JsonValue
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError

from sinas_server.agents.kind import AgentSpec
from sinas_server.chats.attachments import accept_for
from sinas_server.chats.chat import Wanted, alive, chat_agent, create_chat, may_talk
from sinas_server.chats.once import IdempotencyKey, start_once
from sinas_server.chats.send import answered, finished
from sinas_server.chats.start import Said, Started, inject, start_turn
from sinas_server.chats.tables import ChatRow
from sinas_server.chats.views import AgentName, InvokeRequest, InvokeResponse, Namespace
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ForbiddenError
from sinas_server.kernel.http import CurrentCaller, Run, new_router
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db


async def _start(
    db: Db, runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], asked: tuple[InvokeRequest, Said]
) -> Started:
    body, said = asked
    if said.when_busy == "inject" and body.session_key is not None and not body.reset:
        known = await db.scalar(select(ChatRow).where(*_of_key(agent, body.session_key), alive()))
        if known is not None and may_talk(caller, known.user_id):
            injected = await inject(db, runtime, caller, known.id, said)
            if injected is not None:
                return injected
    return await start_turn(db, runtime, caller, await _session(db, caller, agent, body), said)


def _of_key(agent: Resource[AgentSpec], key: str) -> tuple[ColumnElement[bool], ...]:
    return ChatRow.agent_id == agent.id, ChatRow.session_key == key, ChatRow.archived.is_(False)


async def _session(db: Db, caller: Caller, agent: Resource[AgentSpec], body: InvokeRequest) -> ChatRow:
    """The conversation of the key, locked; a new one where there is none. Raises 403 for another user's key."""
    wanted = Wanted(input=body.input or {}, session_key=body.session_key)
    if body.session_key is None:
        return await create_chat(db, caller, agent, wanted)
    known = await db.scalar(select(ChatRow).where(*_of_key(agent, body.session_key)).with_for_update())
    if known is not None and not may_talk(caller, known.user_id):
        raise ForbiddenError("this session key belongs to a conversation of another user")
    if known is not None and not body.reset and await db.scalar(select(alive()).where(ChatRow.id == known.id)):
        return known
    if known is not None:
        await db.execute(update(ChatRow).where(ChatRow.id == known.id).values(archived=True))
    try:
        async with db.begin_nested():
            return await create_chat(db, caller, agent, wanted)
    except IntegrityError:  # another message with this key was faster
        return await _session(db, caller, agent, body)


async def _at(namespace: Namespace, agent_name: AgentName) -> tuple[str, str]:
    return namespace, agent_name


async def _invoke(
    at: Annotated[tuple[str, str], Depends(_at)],
    body: InvokeRequest,
    runtime: Run,
    caller: CurrentCaller,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> InvokeResponse:
    """Waits for the answer; if the client goes away, the turn goes on."""
    message = await accept_for(runtime, caller, at, body.message, ("body", "message"))
    async with runtime.database.unit() as db:
        agent = await chat_agent(db, caller, *at)
        start = partial(_start, db, runtime, caller, agent, (body, Said(message, when_busy=body.when_busy)))
        asked: JsonValue = {"agent_id": str(agent.id), "body": body.model_dump(mode="json")}
        if idempotency_key is None:
            started = await start()
        else:
            started, _ = await start_once(db, caller, idempotency_key, asked, start)
    said = await answered(runtime, await finished(runtime, started.turn_id, request), started)
    return InvokeResponse(
        reply=said.content or "",
        chat_id=started.chat_id,
        session_key=body.session_key,
        usage=said.usage,
        status=said.status,
        pending_inputs=said.pending_inputs,
        channel_id=said.channel_id,
    )


def _invoke_router() -> APIRouter:
    router = new_router("", "invoke")
    router.post(
        "/agents/{namespace}/{agent_name}/invoke", summary="Ask an agent and wait for its answer", name="agent"
    )(_invoke)
    return router


invoke_router = _invoke_router()

"""Chats over HTTP: managing them, talking in them, and following what an agent does."""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import JsonValue
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError

from sinas_server.backends.stream import START, Position, StreamLostError, StreamUnavailableError
from sinas_server.chats import queued, stop
from sinas_server.chats.approval import Decision, decide
from sinas_server.chats.asked import APPROVALS, asked_in
from sinas_server.chats.chat import (
    ChatFilter,
    Wanted,
    chat_agent,
    create_chat,
    find_chat,
    list_chats,
    own_chat,
)
from sinas_server.chats.ending import abandon_chats
from sinas_server.chats.follow import deleted, follow, journaled, replay
from sinas_server.chats.fork import known_branch, said_in
from sinas_server.chats.live import topic
from sinas_server.chats.once import IdempotencyKey, start_once
from sinas_server.chats.queued import waiting_in
from sinas_server.chats.record import last_turn
from sinas_server.chats.send import answered, finished
from sinas_server.chats.start import Asked, Said, Started, accept_in, say, say_now
from sinas_server.chats.tables import ChannelRow, ChatRow, SummaryRow, TurnRow
from sinas_server.chats.views import (
    AgentChatCreateRequest,
    AgentName,
    ApprovalResponse,
    BranchMessageResponse,
    ChatResponse,
    ChatUpdate,
    ChatWithMessages,
    MessageSendRequest,
    Namespace,
    PendingApprovalResponse,
    QueuedMessageResponse,
    SentResponse,
    StopResponse,
    SummaryResponse,
    ToolApprovalRequest,
    TurnResponse,
)
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, InvalidError, NotFoundError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, Run, new_router
from sinas_server.kernel.runtime import Runtime

ChatId = Annotated[UUID, Path(description="The chat's id.")]
ChannelId = Annotated[UUID, Path(description="The channel of a turn, as its first answer names it.")]
MessageId = Annotated[UUID, Path(description="The message's id, as the chat's `queued` names it.")]
ToolCallId = Annotated[str, Path(description="The tool call's id, as `approval_required` names it.")]
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
EVENTS = "Server-sent events until `done` or `error`."
EVENT_STREAM: Mapping[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": EVENTS}
}


async def _create(
    namespace: Namespace, agent_name: AgentName, body: AgentChatCreateRequest, db: CurrentDb, caller: CurrentCaller
) -> ChatResponse:
    agent = await chat_agent(db, caller, namespace, agent_name)
    wanted = Wanted(
        input=body.input or {},
        title=body.title,
        expires_in=body.expires_in,
        job_timeout=body.job_timeout,
        keep_alive=body.keep_alive,
    )
    return ChatResponse.of(await create_chat(db, caller, agent, wanted))


async def _list(
    db: CurrentDb,
    caller: CurrentCaller,
    response: Response,
    only: Annotated[ChatFilter, Query()],
) -> list[ChatResponse]:
    """Without `limit` and `cursor` all of them, up to a thousand (then `X-Truncated: true`); with one of them a page,
    and `X-Next-Cursor` if there is another."""
    found = await list_chats(db, caller, only)
    if found.next_cursor is not None:
        response.headers["X-Next-Cursor"] = found.next_cursor
    if found.truncated:
        response.headers["X-Truncated"] = "true"
    return [ChatResponse.of(chat) for chat in found.chats]


async def _get(chat_id: ChatId, db: CurrentDb, caller: CurrentCaller) -> ChatWithMessages:
    chat = await find_chat(db, caller, chat_id, "read")
    last = await last_turn(db, chat)
    waiting = await waiting_in(db, chat.id)
    return ChatWithMessages(
        **ChatResponse.of(chat).model_dump(),
        messages=await said_in(db, chat, chat.branch),
        pending_approvals=[PendingApprovalResponse.of(call) for call in await asked_in(db, chat.id, APPROVALS)],
        last_turn=None if last is None else TurnResponse.of(last),
        queued=[QueuedMessageResponse.of(message, turn, db.settings) for message, turn in waiting],
    )


BranchNumber = Annotated[int | None, Query(ge=0, le=MAX_INT, description="Another branch than the active one.")]


async def _messages(
    chat_id: ChatId, db: CurrentDb, caller: CurrentCaller, branch: BranchNumber = None
) -> list[BranchMessageResponse]:
    """Those of the active branch, or of another one, which stays as active as it is."""
    chat = await find_chat(db, caller, chat_id, "read")
    return await said_in(db, chat, chat.branch if branch is None else await known_branch(db, chat, branch))


async def _summaries(chat_id: ChatId, db: CurrentDb, caller: CurrentCaller) -> list[SummaryResponse]:
    """The summaries that an agent with `history_summary` has had made of the chat, the oldest first."""
    chat = await find_chat(db, caller, chat_id, "read")
    rows = await db.scalars(select(SummaryRow).where(SummaryRow.chat_id == chat.id).order_by(SummaryRow.created_at))
    return [SummaryResponse.of(row) for row in rows]


async def _update(chat_id: ChatId, body: ChatUpdate, db: CurrentDb, caller: CurrentCaller) -> ChatResponse:
    chat = await find_chat(db, caller, chat_id, "update", lock=True)
    values = {key: value for key, value in body.model_dump().items() if value is not None}
    if not values:
        return ChatResponse.of(chat)
    statement = update(ChatRow).where(ChatRow.id == chat.id).values(**values, updated_at=func.now()).returning(ChatRow)
    try:
        async with db.begin_nested():
            changed = (await db.execute(statement, execution_options={"populate_existing": True})).scalar_one()
    except IntegrityError as error:
        raise ConflictError(f"another chat is active under the session key '{chat.session_key}'") from error
    return ChatResponse.of(changed)


async def _delete(chat_id: ChatId, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> None:
    """A turn that is running stops, and what it has begun: functions, and the chats of other agents."""
    chat = await find_chat(db, caller, chat_id, "delete")
    await abandon_chats(db, runtime, ChatRow.id == chat.id)
    followed = select(TurnRow.channel_id).where(TurnRow.chat_id == chat.id, TurnRow.finished_at.is_(None))
    for channel_id in await db.scalars(followed):
        db.after_commit(partial(_end_deleted, runtime, channel_id))
    await db.execute(delete(ChatRow).where(ChatRow.id == chat.id))


async def _end_deleted(runtime: Runtime, channel_id: UUID) -> None:
    try:
        await runtime.streams.append(str(channel_id), [deleted()])
    except (StreamLostError, StreamUnavailableError):
        return  # readers find out by themselves
    await runtime.signals.signal(topic(channel_id))
    await runtime.streams.expire(str(channel_id), 60)


async def _send(
    chat_id: ChatId,
    body: MessageSendRequest,
    runtime: Run,
    caller: CurrentCaller,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> SentResponse:
    """Waits for the turn; if the client goes away, the turn goes on."""
    started, _ = await _start(chat_id, body, runtime, caller, idempotency_key)
    return await answered(runtime, await finished(runtime, started.turn_id, request), started)


async def _start(
    chat_id: UUID, body: MessageSendRequest, runtime: Runtime, caller: Caller, key: str | None
) -> tuple[Started, bool]:
    """The turn, and whether it was begun before with the same key."""
    if key is None:
        asked_now = Asked(body.content, include_thinking=body.include_thinking, when_busy=body.when_busy)
        return await say_now(runtime, caller, chat_id, asked_now), False
    content = await accept_in(runtime, caller, chat_id, body.content)
    said = Said(content, body.include_thinking, when_busy=body.when_busy)
    async with runtime.database.unit() as db:
        await own_chat(db, caller, chat_id, lock=False)
        asked: JsonValue = {"chat_id": str(chat_id), "body": body.model_dump(mode="json")}
        return await start_once(db, caller, key, asked, partial(say, db, runtime, caller, chat_id, said))


async def _stream(
    chat_id: ChatId,
    body: MessageSendRequest,
    runtime: Run,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> StreamingResponse:
    """If the connection breaks, the turn goes on: read on at `/chats/{chat_id}/stream/{channel_id}`.

    `X-Message-Status` says whether the turn is `started`, or `queued` behind others of the chat, or the message was
    `injected` into the one that runs, of which the stream then tells from its beginning.
    """
    return await streamed(runtime, *await _start(chat_id, body, runtime, caller, idempotency_key))


async def streamed(runtime: Runtime, started: Started, again: bool) -> StreamingResponse:
    """The events of a turn; `again`: it was begun before, and may have ended."""
    ended = await journaled(runtime, started.channel_id) if again else None
    blocks = follow(runtime, started.channel_id, START) if ended is None else replay(ended, START)
    answer = _events(blocks, started.chat_id, started.channel_id)
    answer.headers["X-Message-Status"] = started.how
    return answer


def _events(blocks: AsyncIterator[bytes], chat_id: UUID, channel_id: UUID) -> StreamingResponse:
    headers = {**STREAM_HEADERS, "X-Chat-ID": str(chat_id), "X-Channel-ID": str(channel_id)}
    return StreamingResponse(blocks, media_type="text/event-stream", headers=headers)


LastId = Annotated[str, Query(description="The id of the last event seen; `0` for all.")]
LastEventId = Annotated[str | None, Header(description="The same, as browsers send it; wins over `last_id`.")]


async def _read(
    chat_id: ChatId,
    channel_id: ChannelId,
    runtime: Run,
    caller: CurrentCaller,
    last_id: LastId = "0",
    last_event_id: LastEventId = None,
) -> StreamingResponse:
    """Every event after the given one, then what happens, until `done` or `error`."""
    after = _position(last_id, last_event_id)
    async with runtime.database.unit() as db:
        chat = await find_chat(db, caller, chat_id, "read")
        known = await db.scalar(select(ChannelRow.id).where(ChannelRow.id == channel_id, ChannelRow.chat_id == chat.id))
    if known is None:
        raise NotFoundError("channel not found")
    ended = await journaled(runtime, channel_id)
    if ended is None:
        return _events(follow(runtime, channel_id, after), chat.id, channel_id)
    return _events(replay(ended, after), chat.id, channel_id)


def _position(last_id: str, last_event_id: str | None) -> Position:
    where = ("header", "Last-Event-ID") if last_event_id else ("query", "last_id")
    try:
        return Position.parse(last_event_id or last_id)
    except ValueError as error:
        raise InvalidError([(where, "must be the id of an event, like 1-20")]) from error


async def approve(
    chat_id: ChatId,
    tool_call_id: ToolCallId,
    body: ToolApprovalRequest,
    runtime: Run,
    caller: CurrentCaller,
) -> ApprovalResponse:
    """Once no call of the answer waits any more, the agent goes on: follow the channel."""
    decision = Decision(body.approved, always=bool(body.always_allow))
    resumed = await decide(runtime, caller, chat_id, tool_call_id, decision)
    verdict = "approved" if body.approved else "rejected"
    return ApprovalResponse(
        status=verdict,
        tool_call_id=tool_call_id,
        channel_id=str(resumed.channel_id),
        message=f"Call {verdict}; " + ("the agent goes on" if resumed.queued else "it still waits for the user"),
        resume="queued" if resumed.queued else "waiting",
    )


async def _stop(
    chat_id: ChatId,
    runtime: Run,
    caller: CurrentCaller,
    withdraw: Annotated[bool, Query(description="Withdraw the messages that are queued too.")] = False,
) -> StopResponse:
    """What the agent said so far is kept. Then it answers the message that is queued next, if there is one."""
    withdrawn = 0
    if withdraw:
        async with runtime.database.unit() as db:
            chat = await find_chat(db, caller, chat_id, "update", lock=True)
            withdrawn = await queued.withdraw_all(db, runtime, chat)
    async with runtime.database.unit() as db:
        chat = await find_chat(db, caller, chat_id, "update")
        turn = await stop.stop_turn(db, runtime, chat.id)
    if turn is not None:
        await stop.await_stop(runtime, turn.id)
    return StopResponse(status="idle" if turn is None else "stopped", withdrawn=withdrawn)


async def _withdraw(chat_id: ChatId, message_id: MessageId, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> None:
    """Those who follow it are told `done` with the status `cancelled`."""
    chat = await find_chat(db, caller, chat_id, "update", lock=True)
    await queued.withdraw(db, runtime, chat, message_id)


def _chats_router() -> APIRouter:
    router = new_router("", "chats")
    router.post("/agents/{namespace}/{agent_name}/chats", summary="Create a chat with an agent", name="create")(_create)
    router.get("/chats", summary="List one's chats", name="list")(_list)
    router.get("/chats/{chat_id}", summary="Get a chat with its messages", name="get")(_get)
    router.put("/chats/{chat_id}", summary="Update a chat", name="update")(_update)
    router.delete("/chats/{chat_id}", status_code=204, summary="Delete a chat", name="delete")(_delete)
    router.get("/chats/{chat_id}/messages", summary="List the messages of a chat", name="messages")(_messages)
    router.get("/chats/{chat_id}/summaries", summary="List the summaries of a chat", name="summaries")(_summaries)
    router.post("/chats/{chat_id}/messages", summary="Send a message and wait for the answer", name="send")(_send)
    router.post(
        "/chats/{chat_id}/messages/stream",
        summary="Send a message and stream the answer",
        name="stream",
        responses=dict(EVENT_STREAM),
        response_class=StreamingResponse,
    )(_stream)
    router.get(
        "/chats/{chat_id}/stream/{channel_id}",
        summary="Read on a stream",
        name="read",
        responses=dict(EVENT_STREAM),
        response_class=StreamingResponse,
    )(_read)
    router.post(
        "/chats/{chat_id}/approve-tool/{tool_call_id}",
        status_code=202,
        summary="Approve or reject a call",
        name="approve",
    )(approve)
    router.post("/chats/{chat_id}/stop", summary="Stop the agent", name="stop")(_stop)
    router.delete(
        "/chats/{chat_id}/queued/{message_id}",
        status_code=204,
        summary="Withdraw a message whose turn has not begun",
        name="withdraw",
        responses={404: {"description": "No such message."}, 409: {"description": "The agent has it already."}},
    )(_withdraw)
    return router


chats_router = _chats_router()

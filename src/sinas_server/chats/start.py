"""Starting a turn: the user's message, the turn and its channel in one transaction, then a worker is woken."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID, uuid4

import orjson
from sqlalchemy import ColumnElement, Executable, bindparam, func, insert, literal_column, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from sinas_server.agents.kind import AgentSpec
from sinas_server.backends.db import is_lost
from sinas_server.chats.attachments import accept, attaching
from sinas_server.chats.chat import may_talk, own_chat
from sinas_server.chats.content import Content, Kept, texts
from sinas_server.chats.ending import Ending, end_open
from sinas_server.chats.live import turn_topic
from sinas_server.chats.nesting import ChildIds
from sinas_server.chats.prepare import usable_agent
from sinas_server.chats.record import read_turn
from sinas_server.chats.tables import QUEUE, ChannelRow, ChatRow, MessageRow, Status, TurnRow
from sinas_server.chats.talk import IS_OPEN, Talk, allowed_agent, read_talk
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, Location, NotFoundError, UnavailableError
from sinas_server.kernel.job import wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import CallIdentity
from sinas_server.kernel.unit import Db
from sinas_server.providers.admit import check_budgets
from sinas_server.providers.usage import Payer

BUSY = "The agent is still answering the last message: wait for it, or stop it with POST /chats/{chat_id}/stop"
UNANSWERED = "Not carried out: this waited for the user, who went on with something else."
CONTENT: Location = ("body", "content")
"""Where requests to a chat have what is said."""
LOOK_SECONDS = 1.0
"""A lost signal delays an answer by at most this."""


@dataclass(frozen=True)
class Started:
    """A turn that is under way, and the channel to read it from."""

    chat_id: UUID
    turn_id: UUID
    channel_id: UUID


async def start_turn(
    db: Db, runtime: Runtime, caller: Caller, chat: ChatRow, content: Kept, *, include_thinking: bool = False
) -> Started:
    """Have the agent answer a message. `chat`: locked by this transaction. Raises 404, 403, or 409 for a busy chat."""
    return await start_said(db, runtime, caller, chat, Said(content, include_thinking))


async def start_said(db: Db, runtime: Runtime, caller: Caller, chat: ChatRow, said: "Said") -> Started:
    """Like `start_turn`, also for what was said before: then what follows it on the chat's branch is a new answer."""
    agent = await usable_agent(db, caller, chat)
    await check_budgets(runtime, _payer(caller, agent))
    await _end_waiting(db, runtime, chat)
    values = _values(runtime, caller, chat, agent, said)
    statement = _START_AGAIN if said.content is None else _START
    if (await (await db.connection()).execute(statement, values)).first() is None:
        raise ConflictError(BUSY)
    db.after_commit(lambda: wake(runtime, QUEUE, caller.depth))
    return _started(values)


async def start_now(
    runtime: Runtime,
    caller: Caller,
    chat_id: UUID,
    said: Content,
    at: Location = CONTENT,
    *,
    include_thinking: bool = False,
) -> Started:
    """Like `start_turn`, for a chat of the caller: two round trips where nothing stands in the way.

    `at`: see `accept`, whose errors it raises too.
    """
    talk = await _own_talk(runtime, caller, chat_id)
    agent = allowed_agent(caller, talk.chat, talk.agent)
    content = await accept(runtime, caller, agent, said, at)
    if not talk.busy:
        await check_budgets(runtime, _payer(caller, agent))
        values = _values(runtime, caller, talk.chat, agent, Said(content, include_thinking))
        if values["new_parts"] is not None:
            values["new_parts"] = orjson.dumps(values["new_parts"]).decode()
        if await _began(runtime, values):
            await wake(runtime, QUEUE, caller.depth)
            return _started(values)
    async with runtime.database.unit() as db:
        chat = await own_chat(db, caller, chat_id)
        return await start_turn(db, runtime, caller, chat, content, include_thinking=include_thinking)


async def accept_in(runtime: Runtime, caller: Caller, chat_id: UUID, said: Content) -> Kept:
    """What is said in a chat of the caller, as `accept` gives it. Raises 404 and 403 too."""
    mere = texts(said)
    if mere is not None:
        return mere
    talk = await _own_talk(runtime, caller, chat_id)
    return await accept(runtime, caller, allowed_agent(caller, talk.chat, talk.agent), said, CONTENT)


async def _own_talk(runtime: Runtime, caller: Caller, chat_id: UUID) -> Talk:
    talk = await read_talk(runtime.database, chat_id)
    if talk is None or not may_talk(caller, talk.chat.user_id):
        raise NotFoundError("chat not found")
    return talk


def _payer(caller: Caller, agent: Resource[AgentSpec]) -> Payer:
    return Payer(caller.id, caller.api_key, agent.id, agent.ref)


async def _began(runtime: Runtime, values: dict[str, object]) -> bool:
    try:
        return bool(await runtime.database.direct(_START, values))
    except IntegrityError:  # another message was faster
        return False


@dataclass(frozen=True)
class ByCall:
    """Which tool call of another agent's turn begins a turn."""

    parent: TurnRow
    identity: CallIdentity


@dataclass(frozen=True)
class Said:
    """What the user says, or an agent on his behalf."""

    content: Kept | None
    """None for what was said before, as the message of this id."""
    include_thinking: bool = False
    by: ByCall | None = None
    message_id: UUID = field(default_factory=uuid4)


async def start_child(
    db: Db, runtime: Runtime, caller: Caller, chat: ChatRow, agent: Resource[AgentSpec], said: Said
) -> None:
    """Have an agent work for another one. `chat`: made by this transaction; `caller`: whom the other one acts for."""
    await (await db.connection()).execute(_START, _values(runtime, caller, chat, agent, said))
    db.after_commit(lambda: wake(runtime, QUEUE, caller.depth))


def _values(
    runtime: Runtime, caller: Caller, chat: ChatRow, agent: Resource[AgentSpec], said: Said
) -> dict[str, object]:
    """The parameters of `_START`."""
    content = said.content or Kept(None)
    by = said.by
    call = by.identity if by else None
    ids = ChildIds.of(call.turn_id, call.step, call.index) if call else None
    return {
        "new_chat_id": chat.id,
        "new_id": ids.turn if ids else uuid4(),
        "new_channel_id": ids.channel if ids else uuid4(),
        "new_parent_turn_id": call.turn_id if call else None,
        "new_parent_step": call.step if call else None,
        "new_parent_index": call.index if call else None,
        # Before turns that came later than the one that waits for it.
        "new_run_at": by.parent.created_at if by else None,
        "new_user_id": caller.id,
        "new_api_key_id": caller.api_key,
        "new_owner_ids": list(caller.owners),
        "new_via": caller.via,
        "new_depth": caller.depth,
        "new_structured": bool(agent.spec.output_schema),
        "new_include_thinking": said.include_thinking,
        "new_timeout": float(chat.job_timeout or agent.spec.default_job_timeout or runtime.settings.agent_job_timeout),
        "new_message_id": said.message_id,
        "new_content": content.text,
        "new_parts": content.parts,
    }


def _started(values: Mapping[str, object]) -> Started:
    return Started(
        cast(UUID, values["new_chat_id"]), cast(UUID, values["new_id"]), cast(UUID, values["new_channel_id"])
    )


def _starting(*, says: bool) -> Executable:
    """Marks the chat as busy and inserts turn, channel and, if something new is said, the message.

    Gives nothing if the chat is busy or gone.
    """
    at = func.clock_timestamp()
    chat, turn, said = ChatRow.__table__.columns, TurnRow.__table__.columns, MessageRow.__table__.columns
    of_user = ("user_id", "api_key_id", "owner_ids", "via", "depth", "structured", "include_thinking", "timeout")
    of_turn = ("id", "channel_id", "message_id", *of_user, "parent_turn_id", "parent_step", "parent_index")
    new: dict[str, ColumnElement[object]] = {name: bindparam(f"new_{name}", type_=turn[name].type) for name in of_turn}
    new["run_at"] = func.coalesce(bindparam("new_run_at", type_=turn["run_at"].type), func.now())
    free = (
        update(ChatRow)
        .where(ChatRow.id == bindparam("new_chat_id", type_=chat["id"].type), ChatRow.active_channel_id.is_(None))
        .values(active_channel_id=new["channel_id"], updated_at=at, last_message_at=at)
        .returning(ChatRow.id, ChatRow.branch)
        .cte("free")
    )
    turns = insert(TurnRow).from_select(["chat_id", "branch", *new], select(free, *new.values())).cte("turns")
    channels = (
        insert(ChannelRow)
        .from_select(["chat_id", "id", "turn_id"], select(free.c.id, new["channel_id"], new["id"]))
        .cte("channels")
    )
    if not says:
        return select(free.c.id).add_cte(turns, channels)
    text, parts = (bindparam(f"new_{name}", type_=said[name].type) for name in ("content", "parts"))
    messages = (
        insert(MessageRow)
        .from_select(
            ["chat_id", "branch", "id", "turn_id", "role", "content", "parts"],
            select(free, new["message_id"], new["id"], literal_column("'user'"), text, parts),
        )
        .cte("messages")
    )
    attachments = attaching(free, parts).cte("attachments")
    return select(free.c.id).add_cte(turns, channels, messages, attachments)


_START, _START_AGAIN = _starting(says=True), _starting(says=False)


async def _end_waiting(db: Db, runtime: Runtime, chat: ChatRow) -> None:
    """A turn that waits for the user ends without him; one that works makes the chat busy (409)."""
    # Not locked before it is known to be suspended: its worker may hold it, and ask for the chat.
    status = await db.scalar(select(TurnRow.status).where(TurnRow.chat_id == chat.id, IS_OPEN))
    if status is None:
        return
    turn = await open_turn(db, chat.id) if status == Status.SUSPENDED else None
    if status != Status.SUSPENDED or (turn is not None and turn.status != Status.SUSPENDED):
        raise ConflictError(BUSY)
    if turn is not None:
        await end_open(db, runtime, turn, Ending(Status.CANCELLED, reason=UNANSWERED))


async def open_turn(db: Db, chat_id: UUID) -> TurnRow | None:
    """The chat's turn that has not come to its end, locked."""
    return await db.scalar(
        select(TurnRow)
        .where(TurnRow.chat_id == chat_id, IS_OPEN)
        .order_by(TurnRow.created_at.desc())
        .limit(1)
        .with_for_update()
    )


async def wait_turn(runtime: Runtime, turn_id: UUID, timeout_seconds: float) -> TurnRow:
    """A turn as soon as it has ended or paused, or as it is after the timeout. Raises `NotFoundError`."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + timeout_seconds
    async with runtime.signals.listen(turn_topic(turn_id)) as listener:
        while True:
            turn = await _look_patiently(runtime, turn_id)
            left = deadline - clock.time()
            if turn is not None and (turn.has_stopped or left <= 0):
                return turn
            if left <= 0:
                raise UnavailableError("the database is not available; the turn goes on when it is")
            await listener.wait(min(LOOK_SECONDS, left))


async def _look_patiently(runtime: Runtime, turn_id: UUID) -> TurnRow | None:
    """The turn, or None while the database is away."""
    try:
        turn = await read_turn(runtime.database.read, turn_id)
    except SQLAlchemyError as error:
        if is_lost(error):
            return None
        raise
    if turn is None:
        raise NotFoundError("the chat was deleted")
    return turn

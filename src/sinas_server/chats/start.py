"""Starting a turn: the user's message, the turn and its channel in one transaction, then a worker is woken."""

import asyncio
from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db import is_lost
from sinas_server.chats.content import Content, stored
from sinas_server.chats.live import turn_topic
from sinas_server.chats.prepare import usable_agent
from sinas_server.chats.record import Ending, close, read_channel, read_segment, read_turn, within
from sinas_server.chats.tables import OPEN, QUEUE, ChannelRow, ChatRow, MessageRow, Status, TurnRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, NotFoundError, UnavailableError
from sinas_server.kernel.job import wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

LOOK_SECONDS = 1.0
"""A lost signal delays an answer by at most this."""


@dataclass(frozen=True)
class Started:
    """A turn that is under way, and the channel to read it from."""

    chat_id: UUID
    turn_id: UUID
    channel_id: UUID


async def start_turn(
    db: Db, runtime: Runtime, caller: Caller, chat: ChatRow, content: Content, *, include_thinking: bool = False
) -> Started:
    """Have the agent answer a message. `chat`: locked by this transaction. Raises 404, 403, or 409 for a busy chat."""
    agent = await usable_agent(db, caller, chat)
    await _end_waiting(db, chat)
    started = Started(chat.id, uuid4(), uuid4())
    text, parts = stored(content)
    limit = chat.job_timeout or agent.spec.default_job_timeout or runtime.settings.agent_job_timeout
    await db.execute(
        insert(TurnRow).values(
            id=started.turn_id,
            chat_id=chat.id,
            user_id=caller.id,
            api_key_id=caller.api_key,
            owner_ids=list(caller.owners),
            via=caller.via,
            depth=caller.depth,
            channel_id=started.channel_id,
            structured=bool(agent.spec.output_schema),
            include_thinking=include_thinking,
            timeout=limit,
        )
    )
    await db.execute(insert(ChannelRow).values(id=started.channel_id, chat_id=chat.id, turn_id=started.turn_id))
    await db.execute(
        insert(MessageRow).values(chat_id=chat.id, turn_id=started.turn_id, role="user", content=text, parts=parts)
    )
    now = func.clock_timestamp()
    await db.execute(
        update(ChatRow)
        .where(ChatRow.id == chat.id)
        .values(active_channel_id=started.channel_id, updated_at=now, last_message_at=now),
        execution_options={"synchronize_session": False},
    )
    db.after_commit(lambda: wake(runtime, QUEUE, caller.depth))
    return started


async def _end_waiting(db: Db, chat: ChatRow) -> None:
    """A turn that waits for decisions ends without them; one that works makes the chat busy (409)."""
    turn = await open_turn(db, chat.id)
    if turn is None:
        return
    if turn.status != Status.SUSPENDED:
        raise ConflictError(
            "The agent is still answering the last message: wait for it, or stop it with POST /chats/{chat_id}/stop"
        )
    channel = await read_channel(within(db), turn.channel_id)
    if channel is not None:
        segment = await read_segment(within(db), channel, turn)
        reason = "Not carried out: the user did not approve this call and sent another message instead."
        await close(db, turn, segment, Ending(Status.CANCELLED, reason=reason))


async def open_turn(db: Db, chat_id: UUID) -> TurnRow | None:
    """The chat's turn that has not come to its end, locked."""
    unsettled = and_(TurnRow.status == Status.CANCELLED, TurnRow.finished_at.is_(None))
    return await db.scalar(
        select(TurnRow)
        .where(TurnRow.chat_id == chat_id, or_(TurnRow.status.in_(OPEN), unsettled))
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

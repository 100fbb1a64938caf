"""Messages that arrive while a turn runs: each is kept until its own turn begins, or the turn that runs hears it.

The end of a turn begins the next one in its own transaction, so nobody has to look for it. Whoever queues or withdraws
has locked the chat, whoever injects the turn: in the order turn, chat that workers lock them in.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import ColumnElement, case, delete, func, insert, select, true, update

from sinas_server.chats.events import Segment
from sinas_server.chats.live import send_end
from sinas_server.chats.record import ended
from sinas_server.chats.tables import QUEUE, ChatRow, MessageRow, QueuedMessageRow, Status, TurnRow
from sinas_server.kernel.errors import ConflictError, NotFoundError, TooManyRequestsError
from sinas_server.kernel.job import wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

WhenBusy = Literal["queue", "inject", "reject"]
RETRY_SECONDS = 5
IS_TOLD = TurnRow.injected > TurnRow.heard
"""That something was injected into a turn, which it has not heard."""


class QueueFullError(TooManyRequestsError):
    """As many messages wait in the chat as may."""

    code = "queue_full"

    def __init__(self, most: int) -> None:
        detail = f"{most} messages wait in this chat already: wait for an answer, or withdraw one"
        super().__init__(detail, RETRY_SECONDS)


async def leave(db: Db, runtime: Runtime, chat_ids: Sequence[UUID], **values: object) -> None:
    """Note that the open turns of chats have ended, as this transaction has written; what is queued first begins."""
    at = func.clock_timestamp()
    free = (
        update(ChatRow)
        .where(ChatRow.id.in_(chat_ids))
        .values(active_channel_id=None, updated_at=at, last_message_at=at, **values)
    )
    left = free.returning(ChatRow.id, ChatRow.branch, ChatRow.queued)
    for chat in (await db.execute(left, execution_options={"synchronize_session": False})).all():
        if chat.queued:
            await _begin_next(db, runtime, chat.id, chat.branch)


async def _begin_next(db: Db, runtime: Runtime, chat_id: UUID, branch: int) -> None:
    first = (
        select(TurnRow.id)
        .join(QueuedMessageRow, QueuedMessageRow.turn_id == TurnRow.id)
        .where(TurnRow.chat_id == chat_id, TurnRow.status == Status.QUEUED)
        .order_by(QueuedMessageRow.seq)
        .limit(1)
        .scalar_subquery()
    )
    begun = await db.execute(
        update(TurnRow)
        .where(TurnRow.id == first)
        .values(status=Status.PENDING, branch=branch, begun_at=func.clock_timestamp(), run_at=func.now())
        .returning(TurnRow.id, TurnRow.channel_id, TurnRow.depth),
        execution_options={"synchronize_session": False},
    )
    turn = begun.one()
    await _move(db, turn.id, branch, None)
    await db.execute(
        update(ChatRow)
        .where(ChatRow.id == chat_id)
        .values(active_channel_id=turn.channel_id, queued=ChatRow.queued - 1),
        execution_options={"synchronize_session": False},
    )
    db.after_commit(partial(wake, runtime, QUEUE, turn.depth))


def ended_unless_told(step: ColumnElement[int]) -> dict[str, object]:
    """The columns of a turn that has completed, or, if something was injected, is at its next step.

    Of the row as it is once locked: whoever injects locks it too.
    """
    columns = TurnRow.__table__.columns
    end = {name: case((IS_TOLD, columns[name]), else_=value) for name, value in ended(Status.COMPLETED).items()}
    return {**end, "draft": None, "step": case((IS_TOLD, step + 1), else_=step)}


async def hear(db: Db, turn: TurnRow, step: int) -> tuple[UUID, ...]:
    """Make what was injected into a turn, locked, part of the conversation, after this step: the messages' ids."""
    await db.execute(
        update(TurnRow).where(TurnRow.id == turn.id).values(heard=TurnRow.injected),
        execution_options={"synchronize_session": False},
    )
    return await _move(db, turn.id, turn.branch, step)


async def _move(db: Db, turn_id: UUID, branch: int, step: int | None) -> tuple[UUID, ...]:
    statement = delete(QueuedMessageRow).where(QueuedMessageRow.turn_id == turn_id)
    moved = await db.execute(
        statement.returning(*QueuedMessageRow.__table__.columns), execution_options={"synchronize_session": False}
    )
    rows = sorted(moved, key=lambda row: row.seq)
    said = [
        {
            "id": row.id,
            "chat_id": row.chat_id,
            "branch": branch,
            "turn_id": turn_id,
            "step": step,
            "role": "user",
            "content": row.content,
            "parts": row.parts,
        }
        for row in rows
    ]
    if said:
        await db.execute(insert(MessageRow), said)
    return tuple(row.id for row in rows)


async def withdraw(db: Db, runtime: Runtime, chat: ChatRow, message_id: UUID) -> None:
    """Take back a message whose turn has not begun. `chat`: locked. Raises 404, and 409 where it is too late."""
    if await _drop(db, runtime, chat.id, QueuedMessageRow.id == message_id):
        return
    for table in (QueuedMessageRow, MessageRow):
        if await db.scalar(select(table.id).where(table.id == message_id, table.chat_id == chat.id)) is not None:
            raise ConflictError("The agent has this message already: it can only be stopped")
    raise NotFoundError("no such message is queued in this chat")


async def withdraw_all(db: Db, runtime: Runtime, chat: ChatRow) -> int:
    """Take back every message whose turn has not begun: how many. `chat`: locked."""
    return await _drop(db, runtime, chat.id, true())


async def withdraw_turn(db: Db, runtime: Runtime, chat: ChatRow, turn_id: UUID) -> bool:
    """Take back the message of a queued turn; False for one that is not queued. `chat`: locked."""
    return bool(await _drop(db, runtime, chat.id, TurnRow.id == turn_id))


async def _drop(db: Db, runtime: Runtime, chat_id: UUID, which: ColumnElement[bool]) -> int:
    of_chat = (TurnRow.chat_id == chat_id, TurnRow.status == Status.QUEUED)
    chosen = select(TurnRow.id).join(QueuedMessageRow, QueuedMessageRow.turn_id == TurnRow.id).where(*of_chat, which)
    dropped = await db.execute(
        update(TurnRow)
        .where(TurnRow.id.in_(chosen))
        .values(**ended(Status.CANCELLED))
        .returning(TurnRow.id, TurnRow.channel_id),
        execution_options={"synchronize_session": False},
    )
    turns = dropped.all()
    if not turns:
        return 0
    await db.execute(delete(QueuedMessageRow).where(QueuedMessageRow.turn_id.in_([turn.id for turn in turns])))
    left = ChatRow.queued - len(turns)
    await db.execute(
        update(ChatRow).where(ChatRow.id == chat_id).values(queued=left, updated_at=func.clock_timestamp()),
        execution_options={"synchronize_session": False},
    )
    end: tuple[str, dict[str, JsonValue]] = ("done", {"status": "cancelled"})
    for turn in turns:
        segment = Segment(chat_id=chat_id, turn_id=turn.id, channel_id=turn.channel_id, end=end)
        db.after_commit(partial(send_end, runtime, segment))
    return len(turns)


async def waiting_in(db: Db, chat_id: UUID) -> Sequence[tuple[QueuedMessageRow, TurnRow]]:
    """The messages of a chat that are not part of the conversation yet, in their order, each with its turn."""
    query = (
        select(QueuedMessageRow, TurnRow)
        .join(TurnRow, TurnRow.id == QueuedMessageRow.turn_id)
        .where(QueuedMessageRow.chat_id == chat_id)
        .order_by(QueuedMessageRow.seq)
    )
    return [(message, turn) for message, turn in await db.execute(query)]

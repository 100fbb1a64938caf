"""What users are asked in their chats: finding it, and going on when they have said what they think."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import Select, insert, select, update

from sinas_server.chats.events import round_suspended
from sinas_server.chats.record import as_call, locked_turn
from sinas_server.chats.tables import CallStatus, ChannelRow, ChatRow, Status, ToolCallRow, TurnRow
from sinas_server.chats.waits import asked_calls, resume, waiting_calls
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ForbiddenError, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import Wait
from sinas_server.kernel.unit import Db

APPROVALS = frozenset({Wait.APPROVAL})
INPUTS = frozenset({Wait.ANSWER, Wait.INPUT})


def refuse_code(caller: Caller, what: str) -> None:
    """Raise `ForbiddenError` for a function's token: code does not decide for its user."""
    if caller.via == "function" or caller.owners:
        raise ForbiddenError(f"Not authorized: a function cannot {what}, only a user can")


def _suspended(chat_id: UUID) -> Select[TurnRow]:
    return select(TurnRow).where(TurnRow.chat_id == chat_id, TurnRow.status == Status.SUSPENDED)


async def asked_in(db: Db, chat_id: UUID, waits: frozenset[Wait]) -> list[ToolCallRow]:
    """The calls of a chat, and of agents called in it, that wait for the user in one of these ways."""
    turn = await db.scalar(_suspended(chat_id))
    return [] if turn is None else [row for row in await asked_calls(db, turn.id) if row.waits_for in waits]


@dataclass(frozen=True)
class AskedCall:
    """A call that waits for the user, and its turn, locked."""

    call: ToolCallRow
    turn: TurnRow
    turn_here: UUID
    """The turn of the chat where the user was asked: the same, or one that waits for it."""


async def asked_call(db: Db, chat_id: UUID, tool_call_id: str, waits: frozenset[Wait]) -> AskedCall | None:
    """A call that `asked_in` gives; None if there is none. The chat is locked."""
    here = await db.scalar(_suspended(chat_id).with_only_columns(TurnRow.id))
    asked = [] if here is None else await asked_calls(db, here)
    found = next((row for row in asked if row.tool_call_id == tool_call_id and row.waits_for in waits), None)
    if here is None or found is None:
        return None
    if found.chat_id != chat_id:
        await db.execute(select(ChatRow.id).where(ChatRow.id == found.chat_id).with_for_update())
    turn = await locked_turn(db, found.turn_id)
    still = [] if turn is None else await waiting_calls(db, turn)  # somebody may have been faster
    call = next((row for row in still if row.index == found.index), None)
    if turn is None or call is None or turn.status != Status.SUSPENDED:
        return None
    return AskedCall(call, turn, here)


async def root_of(db: Db, chat: ChatRow) -> ChatRow:
    """The chat that the user began, of which a called agent's is a part."""
    while chat.parent_chat_id is not None and (above := await db.get(ChatRow, chat.parent_chat_id)) is not None:
        chat = above
    return chat


async def settle_call(db: Db, call: ToolCallRow, **values: object) -> None:
    """Note that a call need not wait any more, and why."""
    await db.execute(
        update(ToolCallRow)
        .where(ToolCallRow.turn_id == call.turn_id, ToolCallRow.step == call.step, ToolCallRow.index == call.index)
        .values(status=CallStatus.PENDING, **values),
        execution_options={"synchronize_session": False},
    )


@dataclass(frozen=True)
class Resumed:
    """What became of a turn whose user was asked."""

    turn_id: UUID
    channel_id: UUID
    """Where it goes on, or where it is said what it still waits for."""
    queued: bool
    """Whether it goes on."""


async def go_on(runtime: Runtime, turn_id: UUID) -> Resumed:
    """Where a chat's turn goes on after the user has said something to it or to an agent called in it.

    While calls still wait for him, they are asked for again on a channel of its own.
    """
    async with runtime.database.unit() as db:
        chat_id = select(TurnRow.chat_id).where(TurnRow.id == turn_id).scalar_subquery()
        await db.execute(select(ChatRow.id).where(ChatRow.id == chat_id).with_for_update())
        turn = await db.get(TurnRow, turn_id)
        if turn is None:
            raise NotFoundError("the chat was deleted")
        if turn.status != Status.SUSPENDED:
            return Resumed(turn.id, turn.channel_id, queued=True)
        waiting = [as_call(row) for row in await asked_calls(db, turn.id)]
        if not waiting:  # an agent called in it goes on, which it has not been told: the last decision was another one
            await db.refresh(turn, with_for_update=True)
            goes_on = await resume(db, runtime, turn) if turn.status == Status.SUSPENDED else turn.channel_id
            if goes_on is not None:
                return Resumed(turn.id, goes_on, queued=True)
        channel_id = uuid4()
        await db.execute(
            insert(ChannelRow).values(
                id=channel_id,
                chat_id=turn.chat_id,
                turn_id=turn.id,
                first_step=turn.step,
                resumed=True,
                suspended_step=turn.step,
                asked=[list(event) for event in round_suspended(waiting, channel_id, turn.usage)],
            )
        )
    return Resumed(turn.id, channel_id, queued=False)

"""What users are asked in their chats: finding it, and going on when they have said what they think."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import insert, select, update

from sinas_server.chats.events import round_suspended
from sinas_server.chats.record import as_call
from sinas_server.chats.tables import CallStatus, ChannelRow, Status, ToolCallRow, TurnRow
from sinas_server.chats.waits import resume, waiting_calls
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ForbiddenError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import Wait
from sinas_server.kernel.unit import Db

APPROVALS = frozenset({Wait.APPROVAL})
INPUTS = frozenset({Wait.ANSWER, Wait.INPUT})


def refuse_code(caller: Caller, what: str) -> None:
    """Raise `ForbiddenError` for a function's token: code does not decide for its user."""
    if caller.via == "function" or caller.owners:
        raise ForbiddenError(f"Not authorized: a function cannot {what}, only a user can")


async def asked_calls(db: Db, chat_id: UUID, waits: frozenset[Wait]) -> list[ToolCallRow]:
    """The calls of a chat that wait for the user in one of these ways, in their order."""
    query = (
        select(ToolCallRow)
        .join(TurnRow, TurnRow.id == ToolCallRow.turn_id)
        .where(
            ToolCallRow.chat_id == chat_id,
            ToolCallRow.status == CallStatus.WAITING,
            ToolCallRow.waits_for.in_([wait.value for wait in waits]),
            TurnRow.status == Status.SUSPENDED,
        )
    )
    return list(await db.scalars(query.order_by(ToolCallRow.step, ToolCallRow.index)))


async def asked_call(
    db: Db, chat_id: UUID, tool_call_id: str, waits: frozenset[Wait]
) -> tuple[TurnRow | None, ToolCallRow | None]:
    """The suspended turn of a chat, locked, and the call of it if that waits so. The chat is locked."""
    turn = await db.scalar(
        select(TurnRow).where(TurnRow.chat_id == chat_id, TurnRow.status == Status.SUSPENDED).with_for_update()
    )
    waiting = [] if turn is None else await waiting_calls(db, turn)
    found = (row for row in waiting if row.tool_call_id == tool_call_id and row.waits_for in waits)
    return turn, next(found, None)


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


async def go_on(db: Db, runtime: Runtime, turn: TurnRow) -> Resumed:
    """Let a suspended turn, locked, go on; while calls of it still wait, ask for them again on a channel of its own."""
    channel_id = await resume(db, runtime, turn)
    if channel_id is not None:
        return Resumed(turn.id, channel_id, queued=True)
    channel_id = uuid4()
    waiting = [as_call(row) for row in await waiting_calls(db, turn)]
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

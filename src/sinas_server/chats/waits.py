"""Turns that wait: which of their calls need wait no longer, and letting them go on, exactly once.

Whether a wait is settled is read from rows: the child's turn, the paused execution, the clock; decisions and answers of
the user are written to the call itself. Whoever settles something calls `resume`; the sweep finds what nobody told of.
Locks are taken in the order chat, turn where a turn is suspended, and of the turn alone where others may run it.
"""

from contextlib import suppress
from functools import partial
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, and_, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from sinas_server.chats.record import locked_turn, touch
from sinas_server.chats.tables import QUEUE, CallStatus, ChannelRow, ChatRow, Status, ToolCallRow, TurnRow
from sinas_server.functions.tables import ExecutionRow
from sinas_server.functions.tables import Status as ExecutionStatus
from sinas_server.kernel.job import wake
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import Wait
from sinas_server.kernel.unit import Db

SWEEP_SECONDS = 2.0
WAITS = (Status.WAITING, Status.SUSPENDED)


def _settled() -> ColumnElement[bool]:
    """That a waiting call (`ToolCallRow`) need wait no longer."""
    child, call = aliased(TurnRow), ToolCallRow
    working = select(child.id).where(
        child.parent_turn_id == call.turn_id,
        child.parent_step == call.step,
        child.parent_index == call.index,
        child.finished_at.is_(None),
    )
    paused = select(ExecutionRow.id).where(
        ExecutionRow.turn_id == call.turn_id,
        ExecutionRow.step == call.step,
        ExecutionRow.call_index == call.index,
        ExecutionRow.status == ExecutionStatus.AWAITING_INPUT,
    )
    return or_(
        call.wait_until <= func.now(),
        and_(call.waits_for == Wait.AGENT.value, ~working.exists()),
        and_(call.waits_for == Wait.INPUT.value, ~paused.exists()),
    )


async def settle(db: Db, turn_id: UUID, step: int) -> bool:
    """Let the calls of a step go on that need wait no longer; whether there are any. The turn is locked."""
    statement = (
        update(ToolCallRow)
        .where(
            ToolCallRow.turn_id == turn_id,
            ToolCallRow.step == step,
            ToolCallRow.status == CallStatus.WAITING,
            _settled(),
        )
        .values(status=CallStatus.PENDING)
        .returning(ToolCallRow.index)
    )
    return bool((await db.execute(statement, execution_options={"synchronize_session": False})).all())


async def waiting_calls(db: Db, turn: TurnRow) -> list[ToolCallRow]:
    """The calls of a turn that wait, in their order."""
    query = select(ToolCallRow).where(
        ToolCallRow.turn_id == turn.id, ToolCallRow.step == turn.step, ToolCallRow.status == CallStatus.WAITING
    )
    return list(await db.scalars(query.order_by(ToolCallRow.index), execution_options={"populate_existing": True}))


async def resume(db: Db, runtime: Runtime, turn: TurnRow) -> UUID | None:
    """Let a waiting turn, locked, go on if it can: the channel where it does. None if it still waits."""
    settled = await settle(db, turn.id, turn.step)
    if turn.status == Status.WAITING and not settled:
        return None
    if turn.status == Status.SUSPENDED and await waiting_calls(db, turn):  # the user is asked for all at once
        return None
    channel_id = turn.channel_id if turn.status == Status.WAITING else await _next_channel(db, turn)
    await db.execute(
        update(TurnRow)
        .where(TurnRow.id == turn.id)
        .values(status=Status.PENDING, run_at=turn.created_at, channel_id=channel_id),
        execution_options={"synchronize_session": False},
    )
    db.after_commit(lambda: wake(runtime, QUEUE, turn.depth))
    return channel_id


async def _next_channel(db: Db, turn: TurnRow) -> UUID:
    """Where a turn goes on whose channel has ended."""
    channel_id = uuid4()
    values = {"id": channel_id, "chat_id": turn.chat_id, "turn_id": turn.id, "first_step": turn.step}
    await db.execute(insert(ChannelRow).values(**values, resumed=True))
    await db.execute(
        update(ToolCallRow)
        .where(
            ToolCallRow.turn_id == turn.id,
            ToolCallRow.step == turn.step,
            ToolCallRow.approved.is_(True),
            ToolCallRow.started_on.is_(None),
        )
        .values(started_on=channel_id),
        execution_options={"synchronize_session": False},
    )
    await touch(db, turn.chat_id, active_channel_id=channel_id)
    return channel_id


def tell_parent(db: Db, runtime: Runtime, turn: TurnRow) -> None:
    """After this transaction, which ends a turn, let the one go on that waits for it."""
    if turn.parent_turn_id is not None:
        db.after_commit(partial(_resume_soon, runtime, turn.parent_turn_id))


async def _resume_soon(runtime: Runtime, turn_id: UUID) -> None:
    with suppress(SQLAlchemyError):  # the sweep looks again
        await resume_turn(runtime, turn_id)


async def resume_turn(runtime: Runtime, turn_id: UUID) -> None:
    """`resume` in a transaction of its own."""
    async with runtime.database.unit() as db:
        query = select(TurnRow.status, TurnRow.chat_id).where(TurnRow.id == turn_id)
        seen = (await db.execute(query)).one_or_none()
        if seen is None or seen.status not in WAITS:
            return
        if seen.status == Status.SUSPENDED:
            await db.execute(select(ChatRow.id).where(ChatRow.id == seen.chat_id).with_for_update())
        turn = await locked_turn(db, turn_id)
        if turn is not None and turn.status == seen.status:
            await resume(db, runtime, turn)


async def _sweep(runtime: Runtime) -> None:
    """Let turns go on that were told nothing: the teller died, or it was only the time that passed."""
    query = (
        select(TurnRow.id)
        .distinct()
        .join(ToolCallRow, and_(ToolCallRow.turn_id == TurnRow.id, ToolCallRow.step == TurnRow.step))
        .where(TurnRow.status.in_(WAITS), ToolCallRow.status == CallStatus.WAITING, _settled())
    )
    for row in await runtime.database.rows(query):
        await resume_turn(runtime, row.id)


WAITS_LOOP = Loop(name="resume waiting turns", every_seconds=SWEEP_SECONDS, step=_sweep)

"""Turns that wait: which of their calls need wait no longer, and letting them go on, exactly once.

Whether a wait is settled is read from rows: the child's turn, the paused execution, the clock; decisions and answers of
the user are written to the call itself. Whoever settles something calls `resume`; the sweep finds what nobody told of.
Locks are taken in the order chat, turn where a turn is suspended, and of the turn alone where others may run it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from uuid import UUID, uuid4

from pydantic import JsonValue
from sqlalchemy import CTE, ColumnElement, Select, and_, func, insert, or_, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import aliased

from sinas_server.backends.db.direct import constant
from sinas_server.chats.events import Asked, Call, round_suspended
from sinas_server.chats.live import send_end
from sinas_server.chats.record import as_call, locked_turn, read_channel, read_segment, touch, within
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


def asks_still(call: type[ToolCallRow]) -> ColumnElement[bool]:
    """That a paused execution asks what its call's user was asked: answered elsewhere, it asks something else."""
    return ExecutionRow.prompt.is_not_distinct_from(call.question["question"].as_string())


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
        asks_still(call),
    )
    return or_(
        call.wait_until <= func.now(),
        and_(call.waits_for == Wait.AGENT.value, ~working.exists()),
        and_(call.waits_for == Wait.INPUT.value, ~paused.exists()),
    )


async def settle(db: Db, turn_id: UUID, step: int) -> tuple[bool, bool]:
    """Let the calls of a step go on that need wait no longer: whether there are any, and whether a called agent works.

    The turn is locked.
    """
    working = await _works(db, turn_id, step)  # first: who ends after it is settled, or it would be neither
    return await _let_go_on(db, turn_id, step), working


async def _works(db: Db, turn_id: UUID, step: int) -> bool:
    """Whether a called agent that a step waits for is at work, rather than waiting for the user itself."""
    child, call = aliased(TurnRow), ToolCallRow
    query = (
        select(child.id)
        .join(call, and_(call.turn_id == child.parent_turn_id, call.step == child.parent_step))
        .where(
            call.turn_id == turn_id,
            call.step == step,
            call.index == child.parent_index,
            call.status == CallStatus.WAITING,
            child.finished_at.is_(None),
            child.status != Status.SUSPENDED,
        )
    )
    return await db.scalar(query.limit(1)) is not None


async def _let_go_on(db: Db, turn_id: UUID, step: int) -> bool:
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
    query = _of_step(turn).where(ToolCallRow.status == CallStatus.WAITING)
    return list(await db.scalars(query.order_by(ToolCallRow.index), execution_options={"populate_existing": True}))


async def resume(db: Db, runtime: Runtime, turn: TurnRow) -> UUID | None:
    """Let a waiting turn, locked, go on if it can: the channel where it does. None if it still waits.

    A suspended turn whose user has said all goes on; where a called agent was what he was asked for, it waits for that.
    A turn whose called agents all wait for the user is suspended with them.
    """
    _, working = await settle(db, turn.id, turn.step)
    waiting = await waiting_calls(db, turn)
    if turn.status == Status.SUSPENDED and any(call.waits_for != Wait.AGENT for call in waiting):
        return None  # the user is asked for all at once
    pending = await db.scalar(_of_step(turn).where(ToolCallRow.status == CallStatus.PENDING).limit(1))
    if turn.status == Status.WAITING and pending is None:
        asked = [] if working else await asked_calls(db, turn.id)
        below = [as_call(row) for row in asked if row.turn_id != turn.id]
        if below:
            await _suspend_too(db, runtime, turn, below)
        return None
    if pending is None and not working:
        return None
    channel_id = turn.channel_id if turn.status == Status.WAITING else await _next_channel(db, turn)
    status = Status.WAITING if pending is None else Status.PENDING
    await db.execute(
        update(TurnRow)
        .where(TurnRow.id == turn.id)
        .values(status=status, run_at=turn.created_at, channel_id=channel_id),
        execution_options={"synchronize_session": False},
    )
    db.after_commit(lambda: wake(runtime, QUEUE, turn.depth))
    if turn.status == Status.SUSPENDED:
        tell_parent(db, runtime, turn)
    return channel_id


def _of_step(turn: TurnRow) -> Select[ToolCallRow]:
    return select(ToolCallRow).where(ToolCallRow.turn_id == turn.id, ToolCallRow.step == turn.step)


async def suspend(db: Db, turn: TurnRow, asked: Sequence[Call], usage: Mapping[str, JsonValue]) -> tuple[Asked, ...]:
    """Suspend a turn, locked, and end its channel with what the user is asked, there and by called agents.

    Not looked up here: somebody may have decided since the caller found that there is something to ask.
    """
    told = round_suspended(asked, turn.channel_id, usage)
    await db.execute(
        update(ChannelRow)
        .where(ChannelRow.id == turn.channel_id)
        .values(suspended_step=turn.step, asked=[list(event) for event in told])
    )
    await db.execute(
        update(TurnRow).where(TurnRow.id == turn.id).values(status=Status.SUSPENDED, lease_until=None),
        execution_options={"synchronize_session": False},
    )
    await touch(db, turn.chat_id, active_channel_id=None)
    return told


async def _suspend_too(db: Db, runtime: Runtime, turn: TurnRow, asked: Sequence[Call]) -> None:
    await suspend(db, turn, asked, turn.usage)
    tell_parent(db, runtime, turn)
    channel = await read_channel(within(db), turn.channel_id)
    if channel is not None:
        segment = await read_segment(within(db), channel, turn)
        db.after_commit(lambda: send_end(runtime, segment))


def _tree(turn_id: UUID) -> CTE:
    """The suspended turns from this one downwards, each with its step."""
    tree = select(TurnRow.id, TurnRow.step).where(TurnRow.id == turn_id).cte("tree", recursive=True)
    child = aliased(TurnRow)
    return tree.union_all(
        select(child.id, child.step).where(
            child.parent_turn_id == tree.c.id, child.parent_step == tree.c.step, child.status == Status.SUSPENDED
        )
    )


async def asked_calls(db: Db, turn_id: UUID) -> list[ToolCallRow]:
    """The calls that wait for the user: of this turn, and of the agents called by it."""
    tree = _tree(turn_id)
    query = (
        select(ToolCallRow)
        .join(tree, and_(tree.c.id == ToolCallRow.turn_id, tree.c.step == ToolCallRow.step))
        .where(ToolCallRow.status == CallStatus.WAITING, ToolCallRow.waits_for != Wait.AGENT.value)
        .order_by(ToolCallRow.asked_at, ToolCallRow.turn_id, ToolCallRow.index)
    )
    return list(await db.scalars(query, execution_options={"populate_existing": True}))


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
    """After this transaction, which ends, suspends or resumes a turn, do so with the one that waits for it."""
    if turn.parent_turn_id is not None:
        db.after_commit(partial(_resume_soon, runtime, turn.parent_turn_id))


async def _resume_soon(runtime: Runtime, turn_id: UUID) -> None:
    with suppress(SQLAlchemyError):  # the sweep looks again
        await resume_turn(runtime, turn_id)


async def resume_turn(runtime: Runtime, turn_id: UUID) -> None:
    """`resume` in a transaction of its own."""
    while not await _resumed(runtime, turn_id):
        pass


async def _resumed(runtime: Runtime, turn_id: UUID) -> bool:
    """Whether it was done; not if the turn was suspended just now, so that its chat has to be locked first."""
    async with runtime.database.unit() as db:
        seen = (await db.execute(select(TurnRow.status, TurnRow.chat_id).where(TurnRow.id == turn_id))).one_or_none()
        if seen is None:
            return True
        if seen.status == Status.SUSPENDED:
            await db.execute(select(ChatRow.id).where(ChatRow.id == seen.chat_id).with_for_update())
        # Locked whatever it was: its worker may be about to let it wait, for what was settled a moment too late to see.
        turn = await locked_turn(db, turn_id)
        if turn is None or turn.status not in WAITS:
            return True
        if turn.status == Status.SUSPENDED != seen.status:
            return False
        await resume(db, runtime, turn)
        return True


def _may_go_on() -> Select[UUID]:
    """The waiting turns that go on, or wait otherwise, once somebody looks."""
    child = aliased(TurnRow)
    below = select(child.id).where(
        child.parent_turn_id == TurnRow.id, child.parent_step == TurnRow.step, child.finished_at.is_(None)
    )
    asking = below.where(child.status == Status.SUSPENDED).exists()
    working = below.where(child.status != Status.SUSPENDED).exists()
    settled = select(ToolCallRow.index).where(
        ToolCallRow.turn_id == TurnRow.id,
        ToolCallRow.step == TurnRow.step,
        ToolCallRow.status == CallStatus.WAITING,
        _settled(),
    )
    return select(TurnRow.id).where(
        TurnRow.status.in_(list(map(constant, WAITS))),
        or_(
            settled.exists(),
            and_(TurnRow.status == Status.WAITING, asking, ~working),
            and_(TurnRow.status == Status.SUSPENDED, working),
        ),
    )


_MAY_GO_ON = _may_go_on()


async def _sweep(runtime: Runtime) -> None:
    """Let turns go on that were told nothing: the teller died, or it was only the time that passed."""
    for row in await runtime.database.lookup(_MAY_GO_ON, {}):
        await resume_turn(runtime, row.id)


WAITS_LOOP = Loop(name="resume waiting turns", every_seconds=SWEEP_SECONDS, step=_sweep)

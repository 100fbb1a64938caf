"""The ends a turn can come to without a final answer of the model: with it ends everything that works for it."""

from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy import ColumnElement, insert, select, update

from sinas_server.chats.events import Answer, Runs, Segment, content
from sinas_server.chats.hooks import ASYNC_HOOK
from sinas_server.chats.live import send_end
from sinas_server.chats.queued import hear, leave
from sinas_server.chats.record import (
    add_results,
    ended,
    locked_turn,
    read_channel,
    read_segment,
    stored_runs,
    within,
)
from sinas_server.chats.tables import QUEUE, ChatRow, MessageRow, Status, TurnRow
from sinas_server.chats.talk import IS_OPEN
from sinas_server.chats.waits import tell_parent
from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.job import cancel_topic
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db


@dataclass(frozen=True)
class Ending:
    """How a turn ends without a final answer of the model."""

    status: Status
    error: str | None = None
    reason: str | None = None
    """What the model is told about calls that were not carried out."""
    partial: tuple[Runs, int] = ((), 0)
    """What was said of an answer that was cut off, and the position it follows."""


async def close(db: Db, runtime: Runtime, turn: TurnRow, segment: Segment, ending: Ending) -> Segment:
    """End a turn whose row the transaction has locked and read: its open calls get results. Gives the segment's end."""
    answer = segment.answers.get(turn.step)
    partial, offset = ending.partial
    if answer is not None:
        reason = ending.reason or f"Not carried out: {ending.error or 'the user stopped the agent.'}"
        calls = [call if call.done else replace(call, result=reason, is_error=True) for call in answer.calls]
        await add_results(db, turn, turn.step, calls)
    elif content(partial):
        values = {"role": "assistant", "content": content(partial), "runs": stored_runs(partial)}
        await db.execute(
            insert(MessageRow).values(
                chat_id=turn.chat_id,
                branch=turn.branch,
                turn_id=turn.id,
                step=turn.step,
                stream_offset=offset,
                **values,
            )
        )
        segment = segment.with_answer(Answer(turn.step, partial, offset))
    if turn.injected > turn.heard:  # said, if not answered
        await hear(db, turn, turn.step + 1)
    await db.execute(
        update(TurnRow).where(TurnRow.id == turn.id).values(error=ending.error, **ended(ending.status)),
        execution_options={"synchronize_session": False},
    )
    await leave(db, runtime, [turn.chat_id])
    await abandon(db, runtime, turn.id)
    tell_parent(db, runtime, turn)
    if ending.status == Status.FAILED:
        return replace(segment, end=("error", {"error": ending.error}))
    return replace(segment, end=("done", {"status": ending.status.lower()}))


async def abandon(db: Db, runtime: Runtime, turn_id: UUID, call: tuple[int, int] | None = None) -> None:
    """Stop what works for a turn, or for one `call` (step, index) of it: executions, and the turns of called agents."""
    executions = (ExecutionRow.turn_id == turn_id) & ExecutionRow.trigger_id.is_distinct_from(ASYNC_HOOK)
    children = select(TurnRow).where(TurnRow.parent_turn_id == turn_id, IS_OPEN).with_for_update()
    if call is not None:
        step, index = call
        executions &= (ExecutionRow.step == step) & (ExecutionRow.call_index == index)
        children = children.where(TurnRow.parent_step == step, TurnRow.parent_index == index)
    await cancel_executions(db, runtime, executions)
    for child in (await db.scalars(children)).all():
        await end_open(db, runtime, child, Ending(Status.CANCELLED))


async def abandon_deleted(runtime: Runtime, turn_id: UUID) -> None:
    """Stop what a worker has begun for a turn while its chat was being deleted."""
    async with runtime.database.unit() as db:
        if await db.get(TurnRow, turn_id) is None:
            await abandon(db, runtime, turn_id)


async def abandon_chats(db: Db, runtime: Runtime, chats: ColumnElement[bool]) -> None:
    """Stop everything that works for some chats, which this transaction is about to delete with those begun by them."""
    tree = select(ChatRow.id).where(chats).cte("chat_tree", recursive=True)
    tree = tree.union(select(ChatRow.id).where(ChatRow.parent_chat_id == tree.c.id))
    of_tree = select(tree.c.id)
    # Turns before chats, as their workers lock them.
    await db.execute(
        select(TurnRow.id).where(TurnRow.chat_id.in_(of_tree), IS_OPEN).order_by(TurnRow.created_at).with_for_update()
    )
    await cancel_executions(db, runtime, ExecutionRow.chat_id.in_(of_tree) & ExecutionRow.turn_id.is_not(None))
    db.after_commit(lambda: runtime.signals.signal(cancel_topic(QUEUE)))


async def end_open(db: Db, runtime: Runtime, turn: TurnRow, ending: Ending) -> None:
    """End an open turn, locked: its worker does what is left, where it has one."""
    if turn.status == Status.RUNNING:
        await db.execute(
            update(TurnRow).where(TurnRow.id == turn.id).values(status=ending.status),
            execution_options={"synchronize_session": False},
        )
        db.after_commit(lambda: runtime.signals.signal(cancel_topic(QUEUE)))
        return
    channel = await read_channel(within(db), turn.channel_id)
    if channel is not None and turn.status != Status.CANCELLED:
        segment = await close(db, runtime, turn, await read_segment(within(db), channel, turn), ending)
        db.after_commit(lambda: send_end(runtime, segment))


async def cancel_unbegun(db: Db, runtime: Runtime, which: ColumnElement[bool]) -> int:
    """Cancel those of some turns that no worker has had, in a few statements however many there are: how many.

    Nothing was said in them, and nothing works for them; who reads their channels finds the end in the journal.
    """
    canceled = await db.execute(
        update(TurnRow)
        .where(which, TurnRow.status == Status.PENDING, TurnRow.attempt == 0, TurnRow.parent_turn_id.is_(None))
        .values(**ended(Status.CANCELLED))
        .returning(TurnRow.chat_id),
        execution_options={"synchronize_session": False},
    )
    chat_ids = list(canceled.scalars())
    await leave(db, runtime, chat_ids)
    return len(chat_ids)


async def lock_canceled(db: Db, turn_id: UUID) -> TurnRow | None:
    """A canceled turn, locked, whose end is to be completed; None if there is nothing left to do."""
    turn = await locked_turn(db, turn_id)
    return turn if turn is not None and turn.status == Status.CANCELLED and turn.finished_at is None else None

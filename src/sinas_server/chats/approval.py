"""Decisions of users on calls that need their approval."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import func, insert, select, update

from sinas_server.chats.prepare import usable_agent
from sinas_server.chats.record import touch
from sinas_server.chats.tables import QUEUE, CallStatus, ChannelRow, ChatRow, Status, ToolCallRow, TurnRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ForbiddenError, NotFoundError
from sinas_server.kernel.job import wake
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db


@dataclass(frozen=True)
class Decision:
    """What the user decided."""

    approved: bool
    always: bool = False


async def pending_approvals(db: Db, chat_id: UUID) -> list[ToolCallRow]:
    """The calls of a chat that wait for a decision, in their order."""
    return list(
        await db.scalars(
            select(ToolCallRow)
            .join(TurnRow, TurnRow.id == ToolCallRow.turn_id)
            .where(
                ToolCallRow.chat_id == chat_id,
                ToolCallRow.status == CallStatus.AWAITING,
                TurnRow.status == Status.SUSPENDED,
            )
            .order_by(ToolCallRow.step, ToolCallRow.index)
        )
    )


async def decide(
    db: Db, runtime: Runtime, caller: Caller, chat: ChatRow, tool_call_id: str, decision: Decision
) -> tuple[UUID, bool]:
    """Record a decision: the channel to follow, and whether the turn goes on now. `chat`: the caller's own, locked.

    The decision is bound to what is called with which arguments. The turn goes on once no call waits any more.
    Raises 404 for a call that does not wait, 403 for code that decides about itself.
    """
    if caller.via == "function" or caller.owners:
        raise ForbiddenError("Not authorized: a function cannot approve calls, only a user can")
    await usable_agent(db, caller, chat)
    waiting = await pending_approvals(db, chat.id)
    call = next((row for row in waiting if row.tool_call_id == tool_call_id), None)
    if call is None:
        raise NotFoundError("no such call waits for approval")
    rest = [row.index for row in waiting if row is not call]
    await _record(db, caller, chat, call, decision)
    channel_id = uuid4()
    await db.execute(
        insert(ChannelRow).values(
            id=channel_id,
            chat_id=chat.id,
            turn_id=call.turn_id,
            first_step=call.step,
            after_approval=True,
            suspended_step=call.step if rest else None,
            awaiting=rest or None,
        )
    )
    if not rest:
        await db.execute(
            update(TurnRow)
            .where(TurnRow.id == call.turn_id)
            .values(status=Status.PENDING, run_at=func.now(), channel_id=channel_id),
            execution_options={"synchronize_session": False},
        )
        await touch(db, chat.id, active_channel_id=channel_id)
        db.after_commit(lambda: wake(runtime, QUEUE, caller.depth))
    return channel_id, not rest


async def _record(db: Db, caller: Caller, chat: ChatRow, call: ToolCallRow, decision: Decision) -> None:
    await db.execute(
        update(ToolCallRow)
        .where(ToolCallRow.turn_id == call.turn_id, ToolCallRow.step == call.step, ToolCallRow.index == call.index)
        .values(
            status=CallStatus.PENDING,
            approved=decision.approved,
            approved_hash=call.arguments_hash if decision.approved else None,
            decided_by=caller.id,
            decided_at=func.now(),
        ),
        execution_options={"synchronize_session": False},
    )
    tool = call.tool or {}
    if decision.approved and decision.always:
        key = f"{tool.get('toolset')}:{tool.get('target')}"
        allowed = sorted({*chat.always_allowed, key})
        await db.execute(
            update(ChatRow).where(ChatRow.id == chat.id).values(always_allowed=allowed),
            execution_options={"synchronize_session": False},
        )
    detail = {
        "tool_call_id": call.tool_call_id,
        "target": tool.get("target"),
        "arguments_hash": call.arguments_hash,
        "always": decision.always,
    }
    action = "approve_tool" if decision.approved else "reject_tool"
    await audit(db, caller, action, ("chat", str(chat.id)), detail)

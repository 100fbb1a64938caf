"""Decisions of users on calls that need their approval."""

from dataclasses import dataclass

from sqlalchemy import func, update

from sinas_server.chats.asked import APPROVALS, Resumed, asked_call, go_on, refuse_code, settle_call
from sinas_server.chats.prepare import usable_agent
from sinas_server.chats.tables import ChatRow, ToolCallRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db


@dataclass(frozen=True)
class Decision:
    """What the user decided."""

    approved: bool
    always: bool = False


async def decide(
    db: Db, runtime: Runtime, caller: Caller, chat: ChatRow, tool_call_id: str, decision: Decision
) -> Resumed:
    """Record a decision. `chat`: the caller's own, locked.

    The decision is bound to what is called with which arguments. The turn goes on once no call waits any more.
    Raises 404 for a call that does not wait, 403 for code that decides about itself.
    """
    refuse_code(caller, "approve calls")
    await usable_agent(db, caller, chat)
    turn, call = await asked_call(db, chat.id, tool_call_id, APPROVALS)
    if call is None or turn is None:
        raise NotFoundError("no such call waits for approval")
    await _record(db, caller, chat, call, decision)
    return await go_on(db, runtime, turn)


async def _record(db: Db, caller: Caller, chat: ChatRow, call: ToolCallRow, decision: Decision) -> None:
    await settle_call(
        db,
        call,
        approved=decision.approved,
        approved_hash=call.arguments_hash if decision.approved else None,
        decided_by=caller.id,
        decided_at=func.now(),
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

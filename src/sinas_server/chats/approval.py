"""Decisions of users on calls that need their approval."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import JSON, cast, func, update
from sqlalchemy.dialects.postgresql import JSONB

from sinas_server.chats.asked import APPROVALS, Resumed, asked_call, go_on, refuse_code, root_of, settle_call
from sinas_server.chats.chat import own_chat
from sinas_server.chats.prepare import usable_agent
from sinas_server.chats.tables import ChatRow, ToolCallRow
from sinas_server.chats.waits import resume
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


async def decide(runtime: Runtime, caller: Caller, chat_id: UUID, tool_call_id: str, decision: Decision) -> Resumed:
    """Record a decision on a call of the caller's chat, or of an agent called in it; the turn goes on if it now can.

    The decision is bound to what is called with which arguments. Raises 404 for a call that does not wait, 403 for
    code that decides about itself.
    """
    refuse_code(caller, "approve calls")
    async with runtime.database.unit() as db:
        chat = await own_chat(db, caller, chat_id)
        root = await root_of(db, chat)
        await usable_agent(db, caller, root)
        found = await asked_call(db, chat.id, tool_call_id, APPROVALS)
        if found is None:
            raise NotFoundError("no such call waits for approval")
        await _record(db, caller, root, found.call, decision)
        await resume(db, runtime, found.turn)
    return await go_on(runtime, found.turn_here)


async def _record(db: Db, caller: Caller, root: ChatRow, call: ToolCallRow, decision: Decision) -> None:
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
        allowed = cast(ChatRow.always_allowed, JSONB)  # as it is once locked: others decide in other chats of the tree
        await db.execute(
            update(ChatRow)
            .where(ChatRow.id.in_([root.id, call.chat_id]), ~allowed.contains([key]))
            .values(always_allowed=cast(allowed.concat(cast([key], JSONB)), JSON)),
            execution_options={"synchronize_session": False},
        )
    detail = {
        "tool_call_id": call.tool_call_id,
        "target": tool.get("target"),
        "arguments_hash": call.arguments_hash,
        "always": decision.always,
    }
    action = "approve_tool" if decision.approved else "reject_tool"
    await audit(db, caller, action, ("chat", str(call.chat_id)), detail)

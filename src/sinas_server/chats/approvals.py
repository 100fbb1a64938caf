"""Approvals over HTTP outside of a chat: everything that waits for the user's decision, in whichever chat."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy import select

from sinas_server.chats.asked import refuse_code
from sinas_server.chats.chat import CHATS, alive
from sinas_server.chats.routes import approve
from sinas_server.chats.tables import CallStatus, ChatRow, Status, ToolCallRow, TurnRow
from sinas_server.chats.views import PendingApprovalResponse
from sinas_server.kernel.errors import ForbiddenError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, new_router
from sinas_server.kernel.routes import MAX_LIST
from sinas_server.kernel.tool import Wait


class WaitingApprovalResponse(PendingApprovalResponse):
    """A call that waits for a decision, and where."""

    chat_id: UUID = Field(description="The chat.")
    chat_title: str = Field(description="The chat's title.")
    agent: str = Field(description="`namespace/name` of the agent that wants to make the call.")
    created_at: datetime | None = Field(description="Since when it waits.")
    expires_at: datetime | None = Field(description="When it counts as not approved.")


async def _list(
    db: CurrentDb,
    caller: CurrentCaller,
    limit: Annotated[int, Query(ge=1, le=MAX_LIST, description="The most to return.")] = 100,
) -> list[WaitingApprovalResponse]:
    """The oldest first, those of agents that other agents have called among them."""
    refuse_code(caller, "see what waits for approval")
    if not caller.allows(CHATS.name, "read", caller.id):
        raise ForbiddenError("Not authorized: this needs sinas.chats.read:own")
    query = (
        select(ToolCallRow, ChatRow)
        .join(TurnRow, TurnRow.id == ToolCallRow.turn_id)
        .join(ChatRow, ChatRow.id == ToolCallRow.chat_id)
        .where(
            ChatRow.user_id == caller.id,
            alive(),
            TurnRow.status == Status.SUSPENDED,
            ToolCallRow.step == TurnRow.step,
            ToolCallRow.status == CallStatus.WAITING,
            ToolCallRow.waits_for == Wait.APPROVAL.value,
        )
        .order_by(ToolCallRow.asked_at, ToolCallRow.index)
        .limit(limit)
    )
    return [
        WaitingApprovalResponse(
            **PendingApprovalResponse.of(call).model_dump(),
            chat_id=chat.id,
            chat_title=chat.title,
            agent=f"{chat.agent_namespace}/{chat.agent_name}",
            created_at=call.asked_at,
            expires_at=call.wait_until,
        )
        for call, chat in (await db.execute(query)).all()
    ]


def _approvals_router() -> APIRouter:
    router = new_router("/approvals", "approvals")
    router.get("", summary="List the calls that wait for your decision", name="list")(_list)
    router.post(
        "/{chat_id}/{tool_call_id}", status_code=202, summary="Approve or reject a call of any chat", name="decide"
    )(approve)
    return router


approvals_router = _approvals_router()

"""Waiting for a turn over HTTP, and its answer as one object."""

from uuid import UUID

from fastapi import Request
from sqlalchemy import select

from sinas_server.chats.asked import APPROVALS, INPUTS, asked_in
from sinas_server.chats.start import wait_turn
from sinas_server.chats.tables import MessageRow, Status, TurnRow
from sinas_server.chats.views import PendingApprovalResponse, PendingInputResponse, SentResponse, message_fields
from sinas_server.kernel.errors import ConflictError, SinasError
from sinas_server.kernel.runtime import Runtime

UNDER_WAY = (Status.PENDING, Status.RUNNING, Status.WAITING)
PATIENCE_SECONDS = 15.0
"""How often it is looked whether the client is still there."""


class TurnFailedError(SinasError):
    """The agent came to no answer; the message says why."""

    status, code = 502, "turn_failed"


async def finished(runtime: Runtime, turn_id: UUID, request: Request) -> TurnRow:
    """The turn at its end or pause, or as it is when the client has gone."""
    while True:
        turn = await wait_turn(runtime, turn_id, PATIENCE_SECONDS)
        if turn.has_stopped or await request.is_disconnected():
            return turn


async def answered(runtime: Runtime, turn: TurnRow) -> SentResponse:
    """The last thing the agent said in a turn. Raises `TurnFailedError`."""
    if turn.status == Status.FAILED:
        raise TurnFailedError(turn.error or "the turn failed")
    async with runtime.database.unit() as db:
        message = await db.scalar(
            select(MessageRow)
            .where(MessageRow.turn_id == turn.id, MessageRow.role == "assistant")
            .order_by(MessageRow.seq.desc())
            .limit(1)
        )
        approvals, inputs = [await asked_in(db, turn.chat_id, waits) for waits in (APPROVALS, INPUTS)]
    if message is None:
        raise ConflictError("The turn was stopped before the agent said anything")
    states = {Status.SUSPENDED: "input_required", **dict.fromkeys(UNDER_WAY, "in_progress")}
    return SentResponse(
        **message_fields(message, runtime.settings),
        status=states.get(Status(turn.status), "completed"),
        pending_inputs=[PendingInputResponse.of(call) for call in inputs],
        pending_approvals=[PendingApprovalResponse.of(call) for call in approvals],
        channel_id=str(turn.channel_id),
        usage=turn.usage or None,
    )

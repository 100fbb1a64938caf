"""Waiting for a turn over HTTP, and its answer as one object."""

import asyncio
from uuid import UUID

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db import is_lost
from sinas_server.chats.asked import APPROVALS, INPUTS
from sinas_server.chats.live import turn_topic
from sinas_server.chats.record import Read, read_turn, within
from sinas_server.chats.start import Started
from sinas_server.chats.tables import MessageRow, Status, TurnRow
from sinas_server.chats.views import PendingApprovalResponse, PendingInputResponse, SentResponse, message_fields
from sinas_server.chats.waits import asked_calls
from sinas_server.kernel.errors import ConflictError, NotFoundError, SinasError, UnavailableError
from sinas_server.kernel.runtime import Runtime

UNDER_WAY = (Status.QUEUED, Status.PENDING, Status.RUNNING, Status.WAITING)
UNHEARD = "The turn was stopped before the agent said anything"
WITHDRAWN = "The message was withdrawn before its turn came"
LOOK_SECONDS = 1.0
"""A lost signal delays an answer by at most this."""
PATIENCE_SECONDS = 15.0
"""How often it is looked whether the client is still there."""


class TurnFailedError(SinasError):
    """The agent came to no answer; the message says why."""

    status, code = 502, "turn_failed"


async def wait_turn(runtime: Runtime, turn_id: UUID, timeout_seconds: float) -> TurnRow:
    """A turn as soon as it has ended or paused, or as it is after the timeout. Raises `NotFoundError`."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + timeout_seconds
    async with runtime.signals.listen(turn_topic(turn_id)) as listener:
        while True:
            turn = await _look_patiently(runtime, turn_id)
            left = deadline - clock.time()
            if turn is not None and (turn.has_stopped or left <= 0):
                return turn
            if left <= 0:
                raise UnavailableError("the database is not available; the turn goes on when it is")
            await listener.wait(min(LOOK_SECONDS, left))


async def _look_patiently(runtime: Runtime, turn_id: UUID) -> TurnRow | None:
    """The turn, or None while the database is away."""
    try:
        return await _now(runtime.database.read, turn_id)
    except SQLAlchemyError as error:
        if is_lost(error):
            return None
        raise


async def _now(read: Read, turn_id: UUID) -> TurnRow:
    """The turn as it is now. Raises `NotFoundError`."""
    turn = await read_turn(read, turn_id)
    if turn is None:
        raise NotFoundError("the chat was deleted")
    return turn


async def finished(runtime: Runtime, turn_id: UUID, request: Request) -> TurnRow:
    """The turn at its end or pause, or as it is when the client has gone."""
    while True:
        turn = await wait_turn(runtime, turn_id, PATIENCE_SECONDS)
        if turn.has_stopped or await request.is_disconnected():
            return turn


async def answered(runtime: Runtime, turn: TurnRow, started: Started | None = None) -> SentResponse:
    """The last thing the agent said in a turn. `started`: how a message came to it.

    Raises `TurnFailedError`, and `NotFoundError` for a deleted chat.
    """
    async with runtime.database.unit() as db:
        asked = await asked_calls(db, turn.id) if turn.status == Status.SUSPENDED else []
        if turn.status == Status.SUSPENDED and not asked:  # somebody was asked elsewhere, and has decided
            turn = await _now(within(db), turn.id)
        message = await db.scalar(
            select(MessageRow)
            .where(MessageRow.turn_id == turn.id, MessageRow.role == "assistant")
            .order_by(MessageRow.seq.desc())
            .limit(1)
        )
    if turn.status == Status.FAILED:
        raise TurnFailedError(turn.error or "the turn failed")
    if message is None:
        raise ConflictError(WITHDRAWN if turn.begun_at is None else UNHEARD)
    states = {Status.SUSPENDED: "input_required" if asked else "in_progress", **dict.fromkeys(UNDER_WAY, "in_progress")}
    done = "injected" if started is not None and started.how == "injected" else "completed"
    return SentResponse(
        **message_fields(message, runtime.settings),
        status=states.get(Status(turn.status), done),
        pending_inputs=[PendingInputResponse.of(call) for call in asked if call.waits_for in INPUTS],
        pending_approvals=[PendingApprovalResponse.of(call) for call in asked if call.waits_for in APPROVALS],
        channel_id=str(turn.channel_id),
        usage=turn.usage or None,
    )

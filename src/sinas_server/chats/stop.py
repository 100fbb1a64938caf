"""Stopping a turn: its worker keeps what was said so far; where there is no worker, whoever looks does."""

from uuid import UUID

from sqlalchemy import func, or_, select

from sinas_server.backends.db.direct import constant
from sinas_server.backends.stream import LAST, Position, StreamUnavailableError
from sinas_server.chats.ending import Ending, close, end_open, lock_canceled
from sinas_server.chats.events import Runs, answer_phase, spoken
from sinas_server.chats.live import send_end
from sinas_server.chats.record import read_channel, read_segment, within
from sinas_server.chats.send import wait_turn
from sinas_server.chats.start import open_turn
from sinas_server.chats.tables import ChatRow, Status, TurnRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

WAIT_SECONDS = 2.0
"""How long a worker has to say that it stopped."""
SWEEP_SECONDS = 5.0


async def stop_turn(db: Db, runtime: Runtime, chat_id: UUID) -> TurnRow | None:
    """Cancel the chat's open turn, if there is one: its row before, for `await_stop` after this transaction."""
    suspended = (TurnRow.chat_id == chat_id, TurnRow.status == Status.SUSPENDED)
    if await db.scalar(select(TurnRow.id).where(*suspended).limit(1)) is not None:  # as whoever decides locks them
        await db.execute(select(ChatRow.id).where(ChatRow.id == chat_id).with_for_update())
    turn = await open_turn(db, chat_id)
    if turn is not None:
        await end_open(db, runtime, turn, Ending(Status.CANCELLED))
    return turn


async def await_stop(runtime: Runtime, turn_id: UUID) -> None:
    """Wait until the worker has settled a canceled turn; settle it here if it does not."""
    turn = await wait_turn(runtime, turn_id, WAIT_SECONDS)
    if turn.finished_at is None:
        await settle(runtime, turn_id)


async def settle(runtime: Runtime, turn_id: UUID) -> None:
    """Do for a canceled turn what its worker did not: keep the text that readers have, and end its channel."""
    async with runtime.database.unit() as db:
        turn = await lock_canceled(db, turn_id)
        channel = await read_channel(within(db), turn.channel_id) if turn is not None else None
        if turn is None or channel is None:
            return
        segment = await read_segment(within(db), channel, turn)
        # Locked, so that a worker that is only slow keeps no more than what was heard of it until here.
        ending = Ending(Status.CANCELLED, partial=await _heard(runtime, turn))
        segment = await close(db, runtime, turn, segment, ending)
    await send_end(runtime, segment)


async def _heard(runtime: Runtime, turn: TurnRow) -> tuple[Runs, int]:
    """What readers have of the current answer, and the position it follows; they get nothing more of it."""
    try:
        events = await runtime.streams.seal(str(turn.channel_id), Position(answer_phase(turn.step), LAST))
    except StreamUnavailableError:
        events = []
    offset, said = spoken(events, turn.step)
    return said, offset


_UNSETTLED = select(TurnRow.id).where(
    TurnRow.status == constant(Status.CANCELLED),
    TurnRow.finished_at.is_(None),
    or_(TurnRow.lease_until.is_(None), TurnRow.lease_until < func.now()),
)


async def _sweep(runtime: Runtime) -> None:
    """Settle canceled turns whose workers are gone."""
    for row in await runtime.database.lookup(_UNSETTLED, {}):
        await settle(runtime, row.id)


SETTLE_LOOP = Loop(name="settle canceled turns", every_seconds=SWEEP_SECONDS, step=_sweep)

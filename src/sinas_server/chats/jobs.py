"""Working on queued turns."""

from contextlib import suppress

from sinas_server.chats.journal import Journal, LostTurnError
from sinas_server.chats.live import Channel
from sinas_server.chats.loop import AgentLoop
from sinas_server.chats.record import read_channel, read_segment
from sinas_server.chats.tables import QUEUE, ChannelRow, TurnRow
from sinas_server.kernel.job import Claim, Job
from sinas_server.kernel.runtime import Runtime


async def taken_up(runtime: Runtime, turn: TurnRow) -> AgentLoop | None:
    """The loop for a claimed turn, at the point that the journal tells; None if its chat was deleted."""
    first = turn.attempt == 1  # nothing is journaled before the first attempt
    channel = ChannelRow(id=turn.channel_id, first_step=0, resumed=False) if first else None
    channel = channel or await read_channel(runtime.database.read, turn.channel_id)
    if channel is None:
        return None
    segment = await read_segment(runtime.database.read, channel, turn, fresh=first)
    return AgentLoop(runtime, turn, Journal(runtime, turn, segment), Channel(runtime, turn.channel_id))


async def run(runtime: Runtime, claim: Claim[TurnRow]) -> None:
    """Take a turn to its end or its next pause."""
    agent_loop = await taken_up(runtime, claim.row)
    if agent_loop is not None:
        await agent_loop.run(interrupted=claim.row.attempt > 1)


async def fail(runtime: Runtime, claim: Claim[TurnRow], error: str) -> None:
    """End a turn that we, not its agent, failed; the log has the reason."""
    agent_loop = await taken_up(runtime, claim.row)
    if agent_loop is not None:
        with suppress(LostTurnError):
            await agent_loop.fail(f"internal error in turn {claim.row.id}")


CHAT_JOB = Job(queue=QUEUE, table=TurnRow, run=run, fail=fail)

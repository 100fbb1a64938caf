"""Executions and turns as what they have in common: queued jobs that can be counted, listed and cancelled."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import cast
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal_column, select
from sqlalchemy.orm import defer

from sinas_server.chats.ending import Ending, end_open
from sinas_server.chats.queued import withdraw_turn
from sinas_server.chats.record import locked_turn
from sinas_server.chats.stop import await_stop
from sinas_server.chats.tables import ChatRow, TurnRow
from sinas_server.chats.tables import Status as TurnStatus
from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.tables import LARGE, ExecutionRow
from sinas_server.functions.views import JOB_STATES
from sinas_server.kernel.errors import ConflictError, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

COUNTED = timedelta(hours=24)
"""How far back jobs are counted that are neither queued nor running."""
STUCK = timedelta(hours=2)
"""What runs for longer is taken for stuck."""
Job = dict[str, object]


@dataclass(frozen=True)
class JobSort:
    """One sort of jobs: its rows, and what their states are called here."""

    name: str
    table: type[ExecutionRow] | type[TurnRow]
    states: Mapping[str, str]


FUNCTIONS = JobSort("functions", ExecutionRow, JOB_STATES)
AGENTS = JobSort(
    "agents",
    TurnRow,
    {
        TurnStatus.QUEUED: "queued",
        TurnStatus.PENDING: "queued",
        TurnStatus.RUNNING: "running",
        TurnStatus.WAITING: "running",
        TurnStatus.SUSPENDED: "awaiting_input",
        TurnStatus.COMPLETED: "completed",
        TurnStatus.FAILED: "failed",
        TurnStatus.CANCELLED: "cancelled",
    },
)
QUEUES = (FUNCTIONS, AGENTS)
STATES = tuple(JOB_STATES.values())


def _open(table: type[ExecutionRow] | type[TurnRow]) -> list[ColumnElement[bool]]:
    """What is queued or running, in parts that each have an index; the statuses are in the text for its sake."""
    open_ones = table.status.in_([literal_column("'PENDING'"), literal_column("'RUNNING'")])
    parts: list[ColumnElement[bool]] = [open_ones & ~table.held]
    if table is ExecutionRow:
        parts.append(open_ones & table.held & ExecutionRow.max_concurrency.is_not(None))
    return parts


async def count_pending(db: Db) -> dict[str, int]:
    """How many jobs are due and wait for a worker or for room, by queue."""
    counts = {}
    for queue in QUEUES:
        table = queue.table
        due = [
            select(func.count()).where(part, table.status == "PENDING", table.run_at <= func.now())
            for part in _open(table)
        ]
        counts[queue.name] = sum([(await db.execute(query)).scalar_one() for query in due])
    return counts


async def count_jobs(db: Db) -> dict[str, int]:
    """How many jobs are in each state: all that are queued or running, and of the others those of `COUNTED`."""
    counts = dict.fromkeys(STATES, 0)
    for queue in QUEUES:
        table = queue.table
        waiting = [TurnRow.status == literal_column("'WAITING'")] if table is TurnRow else []
        recent = table.status.not_in(("PENDING", "RUNNING", "WAITING")) & (table.created_at >= func.now() - COUNTED)
        for part in (*_open(table), *waiting, recent):
            query = select(table.status, func.count()).where(part).group_by(table.status)
            for status, count in await db.execute(query):
                counts[queue.states[status]] += count
    return counts


async def list_jobs(db: Db, state: str | None, limit: int) -> list[Job]:
    """The newest jobs of both queues, all or those in one state."""
    jobs = [*await _executions(db, state, limit), *await _turns(db, state, limit)]
    return sorted(jobs, key=lambda job: cast(float, job["enqueued_at"]), reverse=True)[:limit]


async def _executions(db: Db, state: str | None, limit: int) -> list[Job]:
    query = select(ExecutionRow).options(*map(defer, LARGE)).order_by(ExecutionRow.created_at.desc()).limit(limit)
    if state is not None:
        query = query.where(ExecutionRow.status.in_(_statuses(FUNCTIONS, state)))
    return [
        {
            "job_id": row.id,
            "status": JOB_STATES[row.status],
            "queue": FUNCTIONS.name,
            "type": "function",
            "function": f"{row.namespace}/{row.name}",
            "agent": None,
            "trigger_type": row.trigger_type,
            "chat_id": row.chat_id,
            "error": row.error,
            "attempts": row.attempt,
            "worker": row.worker,
            "enqueued_at": row.created_at.timestamp(),
        }
        for row in await db.scalars(query)
    ]


async def _turns(db: Db, state: str | None, limit: int) -> list[Job]:
    query = (
        select(TurnRow, ChatRow.agent_namespace, ChatRow.agent_name)
        .join(ChatRow, ChatRow.id == TurnRow.chat_id)
        .order_by(TurnRow.created_at.desc())
        .limit(limit)
    )
    if state is not None:
        query = query.where(TurnRow.status.in_(_statuses(AGENTS, state)))
    return [
        {
            "job_id": row.id,
            "status": AGENTS.states[row.status],
            "queue": AGENTS.name,
            "type": "agent",
            "function": None,
            "agent": f"{namespace}/{name}",
            "trigger_type": row.via.upper(),
            "chat_id": row.chat_id,
            "error": row.error,
            "attempts": row.attempt,
            "worker": row.worker,
            "enqueued_at": row.created_at.timestamp(),
        }
        for row, namespace, name in await db.execute(query)
    ]


def _statuses(queue: JobSort, state: str) -> list[str]:
    return [status for status, shown in queue.states.items() if shown == state]


async def cancel_job(runtime: Runtime, job_id: UUID) -> None:
    """End a job of either queue: what is queued never starts, what runs is killed.

    Raises `NotFoundError`, and `ConflictError` for one that has ended.
    """
    async with runtime.database.unit() as db:
        if await cancel_executions(db, runtime, ExecutionRow.id == job_id):
            return
        execution = await db.get(ExecutionRow, job_id)
        if execution is not None:
            raise ConflictError(f"the job has ended already: it is {JOB_STATES[execution.status]}")
        if await _stop(db, runtime, job_id):
            return
    await await_stop(runtime, job_id)


async def _stop(db: Db, runtime: Runtime, turn_id: UUID) -> bool:
    """Stop a turn; whether that was all there is to do, as it had not begun."""
    seen = (await db.execute(select(TurnRow.status, TurnRow.chat_id).where(TurnRow.id == turn_id))).one_or_none()
    # Where no worker has the turn, the chat is locked first, as by those who decide and withdraw.
    if seen is not None and seen.status in (TurnStatus.QUEUED, TurnStatus.SUSPENDED):
        chat = await db.scalar(select(ChatRow).where(ChatRow.id == seen.chat_id).with_for_update())
        if chat is not None and await withdraw_turn(db, runtime, chat, turn_id):
            return True
    turn = await locked_turn(db, turn_id)
    if turn is None:
        raise NotFoundError("no such job")
    if turn.finished_at is not None:
        raise ConflictError(f"the job has ended already: it is {AGENTS.states[turn.status]}")
    await end_open(db, runtime, turn, Ending(TurnStatus.CANCELLED))
    return False


async def cancel_stuck(runtime: Runtime) -> int:
    """Cancel what has been running for longer than `STUCK`: how many jobs that were."""
    async with runtime.database.unit() as db:
        since = func.coalesce(ExecutionRow.started_at, ExecutionRow.run_at)
        stuck = (ExecutionRow.status == "RUNNING") & ~ExecutionRow.held & (since < func.now() - STUCK)
        canceled = len(await cancel_executions(db, runtime, stuck))
        turns = await db.scalars(
            select(TurnRow.id).where(TurnRow.status == "RUNNING", ~TurnRow.held, TurnRow.run_at < func.now() - STUCK)
        )
    for turn_id in turns.all():
        try:
            await cancel_job(runtime, turn_id)
        except (ConflictError, NotFoundError):  # it has ended meanwhile
            continue
        canceled += 1
    return canceled

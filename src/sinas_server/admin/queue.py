"""The queues over HTTP: what waits, who works on it, dead letters, and stopping a job."""

from collections.abc import Iterable
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Path, Query, Response
from pydantic import BaseModel, Field

from sinas_server.admin import jobs
from sinas_server.admin.system import SYSTEM
from sinas_server.functions import dead_letters
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.errors import InvalidError, UnavailableError
from sinas_server.kernel.heartbeat import Heartbeat, PoolStats, read_heartbeats
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit

queue_router = new_router("/queue", "queue")
WORKERS = ("functions", "agents", "tasks")
MISSING: dict[int | str, dict[str, object]] = {404: {"description": "No such job."}}
JobId = Annotated[UUID, Path(description="The job's id: that of its execution or turn.")]


class Pending(BaseModel):
    """A queue."""

    pending: int = Field(description="Jobs that are due and wait for a worker.")


class DeadLetters(BaseModel):
    """The dead letters as a whole."""

    size: int = Field(description="How many there are.")


class Pool(PoolStats):
    """The sandboxes of all function workers together."""

    total: int = Field(description="Idle ones and those in use.")


class QueueStats(BaseModel):
    """What waits, what runs, and who works on it."""

    queues: dict[str, Pending] = Field(description="`functions` and `agents`.")
    jobs: dict[str, int] = Field(
        description="How many jobs are `queued` and `running`, and of those asked for in the last 24 hours, how many "
        "are `awaiting_input`, `completed`, `failed` and `cancelled`."
    )
    dlq: DeadLetters = Field(description="Executions that failed for good while nobody waited.")
    pool: Pool | None = Field(description="The sandboxes; null while Redis is away, since then nobody is heard of.")
    workers: dict[str, int] | None = Field(description="How many workers each queue has; null while Redis is away.")


class QueueJob(BaseModel):
    """An execution or a turn as queued work."""

    job_id: UUID = Field(description="Its id: that of the execution or turn.")
    status: str = Field(description="`queued`, `running`, `awaiting_input`, `completed`, `failed` or `cancelled`.")
    queue: Literal["functions", "agents"] = Field(description="Which workers it is for.")
    type: Literal["function", "agent"] = Field(description="What runs.")
    function: str | None = Field(description="`namespace/name` of the function.")
    agent: str | None = Field(description="`namespace/name` of the agent.")
    trigger_type: str = Field(description="What started the execution; of a turn, how the caller was logged in.")
    chat_id: UUID | None = Field(description="The chat it belongs to.")
    error: str | None = Field(description="Why it failed.")
    attempts: int = Field(description="How often it was taken up by a worker.")
    worker: str | None = Field(description="The worker that has it, or had it last.")
    enqueued_at: float = Field(description="When it was asked for, in seconds since 1970.")


class DeadLetter(BaseModel):
    """An execution that failed for good while nobody waited for it."""

    job_id: UUID = Field(description="Its id, that of the execution.")
    function: str = Field(description="`namespace/name` of the function.")
    error: str | None = Field(description="Why the last attempt failed.")
    attempts: int = Field(description="How often it was tried.")
    cause: str | None = Field(description="Why, as a word.")
    trigger_type: str = Field(description="What started it.")
    trigger_id: str | None = Field(description="What the starter calls it.")
    user_id: UUID = Field(description="For whom it ran.")
    enqueued_at: float = Field(description="When it was asked for, in seconds since 1970.")
    failed_at: float = Field(description="When it was given up, in seconds since 1970.")


class QueueWorker(Heartbeat):
    """A worker as it was at its last sign of life."""

    max_jobs: int = Field(description="How many jobs it runs at the same time.")


class JobOutcome(BaseModel):
    """What was done to a job."""

    status: Literal["cancelled", "queued"] = Field(description="Where it stands now.")
    job_id: UUID = Field(description="The job.")


class Flushed(BaseModel):
    """What was let go."""

    status: Literal["flushed"] = Field(description="Always `flushed`.")
    count: int = Field(description="How many dead letters there were.")


def _pool(workers: Iterable[Heartbeat]) -> dict[str, int]:
    pools = [worker.pool for worker in workers if worker.pool is not None]
    idle, in_use = sum(pool.idle for pool in pools), sum(pool.in_use for pool in pools)
    return {
        "idle": idle,
        "in_use": in_use,
        "total": idle + in_use,
        "max_size": sum(pool.max_size for pool in pools),
    }


@queue_router.get("/stats", response_model=QueueStats, summary="Count what waits and what runs")
async def stats(runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
    """Counted in the database; only workers and sandboxes are known by their signs of life."""
    caller.require(SYSTEM.name, "read", None)
    try:
        alive: list[Heartbeat] | None = await read_heartbeats(runtime)
    except UnavailableError:
        alive = None
    pending = await jobs.count_pending(db)
    answer = {
        "queues": {name: {"pending": count} for name, count in pending.items()},
        "jobs": await jobs.count_jobs(db),
        "dlq": {"size": await dead_letters.count_dead(db)},
        "pool": None if alive is None else _pool(alive),
        "workers": None if alive is None else {name: sum(one.queue == name for one in alive) for name in WORKERS},
    }
    return JsonAnswer(answer)


@queue_router.get("/jobs", response_model=list[QueueJob], summary="List jobs, the newest first")
async def list_jobs(
    db: CurrentDb,
    caller: CurrentCaller,
    status: Annotated[str | None, Query(description="Only those in this state, in either case.")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="The most to return.")] = 50,
) -> Response:
    """Executions of functions and turns of agents, of all users."""
    caller.require(SYSTEM.name, "read", None)
    state = status.lower() if status else None
    if state is not None and state not in jobs.STATES:
        raise InvalidError([(("query", "status"), f"must be one of {', '.join(jobs.STATES)}")])
    return JsonAnswer(await jobs.list_jobs(db, state, limit))


@queue_router.post(
    "/jobs/{job_id}/cancel",
    response_model=JobOutcome,
    summary="Cancel a job: what is queued never starts, what runs is killed",
    responses=MISSING | {409: {"description": "It has ended."}},
)
async def cancel_job(job_id: JobId, runtime: Run, caller: CurrentCaller) -> Response:
    """Executions also take along those that they wait for; of a turn, what the agent said so far is kept."""
    caller.require(SYSTEM.name, "update", None)
    await jobs.cancel_job(runtime, job_id)
    async with runtime.database.unit() as db:
        await audit(db, caller, "cancel", ("job", str(job_id)))
    return JsonAnswer({"status": "cancelled", "job_id": job_id})


@queue_router.get("/workers", response_model=list[QueueWorker], summary="List the workers that are alive")
async def list_workers(runtime: Run, caller: CurrentCaller) -> Response:
    """Each says every ten seconds that it lives; one that was killed is listed for up to thirty seconds."""
    caller.require(SYSTEM.name, "read", None)
    alive = [worker for worker in await read_heartbeats(runtime) if worker.queue in WORKERS]
    return JsonAnswer([{**worker.model_dump(), "max_jobs": worker.slots} for worker in alive])


@queue_router.get("/dlq", response_model=list[DeadLetter], summary="List dead letters, the newest first")
async def list_dead_letters(
    db: CurrentDb,
    caller: CurrentCaller,
    skip: Annotated[int, Query(ge=0, le=MAX_INT, description="How many to leave out.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="The most to return.")] = 100,
) -> Response:
    """What was tried as often as `QUEUE_MAX_RETRIES` allows. It stays here until it is retried or flushed."""
    caller.require(SYSTEM.name, "read", None)
    return JsonAnswer([_dead_letter(row) for row in await dead_letters.list_dead(db, skip, limit)])


def _dead_letter(row: ExecutionRow) -> dict[str, object]:
    return {
        "job_id": row.id,
        "function": f"{row.namespace}/{row.name}",
        "error": row.error,
        "attempts": row.attempt,
        "cause": row.cause,
        "trigger_type": row.trigger_type,
        "trigger_id": row.trigger_id,
        "user_id": row.user_id,
        "enqueued_at": row.created_at.timestamp(),
        "failed_at": (row.dead_at or row.created_at).timestamp(),
    }


@queue_router.post(
    "/dlq/{job_id}/retry",
    response_model=JobOutcome,
    summary="Queue a dead letter again",
    responses=MISSING | {409: {"description": "It is no dead letter."}},
)
async def retry_dead_letter(job_id: JobId, runtime: Run, db: CurrentDb, caller: CurrentCaller) -> Response:
    """It keeps its id and its input, and may fail as often again as a new one."""
    caller.require(SYSTEM.name, "update", None)
    await dead_letters.retry_dead(db, runtime, caller, job_id)
    return JsonAnswer({"status": "queued", "job_id": job_id})


@queue_router.post("/dlq/flush", response_model=Flushed, summary="Let all dead letters go")
async def flush_dead_letters(db: CurrentDb, caller: CurrentCaller) -> Response:
    """They stay in the history of executions as failed."""
    caller.require(SYSTEM.name, "update", None)
    return JsonAnswer({"status": "flushed", "count": await dead_letters.flush_dead(db, caller)})

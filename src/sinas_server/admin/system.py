"""What concerns the installation as a whole."""

from typing import Annotated

from fastapi import Query, Response
from pydantic import BaseModel, Field

from sinas_server.admin import jobs
from sinas_server.admin.health import HealthResponse, read_health
from sinas_server.kernel.access import AccessResource
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit

SYSTEM = AccessResource(
    "system",
    "The installation: its queues, workers and services; needs `:all`.",
    ("read", "update"),
    admin_only=True,
)
system_router = new_router("/system", "system")


class FlushedJobs(BaseModel):
    """What was cancelled."""

    cancelled: int = Field(description="How many jobs.")


@system_router.get("/health", response_model=HealthResponse, summary="Look at every service, the host, and warnings")
async def health(
    runtime: Run,
    db: CurrentDb,
    caller: CurrentCaller,
    include_stats: Annotated[bool, Query(description="With the processor time and memory of each service.")] = False,
) -> Response:
    """Processes are known by their signs of life: one that was killed is listed for up to 30 seconds more."""
    caller.require(SYSTEM.name, "read", None)
    return JsonAnswer((await read_health(runtime, db, stats=include_stats)).model_dump())


@system_router.post("/flush-stuck-jobs", response_model=FlushedJobs, summary="Cancel what has run for over two hours")
async def flush_stuck_jobs(runtime: Run, caller: CurrentCaller) -> Response:
    """Executions and turns of agents. Work of a worker that died goes on by itself much earlier."""
    caller.require(SYSTEM.name, "update", None)
    cancelled = await jobs.cancel_stuck(runtime)
    async with runtime.database.unit() as db:
        await audit(db, caller, "flush", ("stuck_jobs", "queue"), {"cancelled": cancelled})
    return JsonAnswer({"cancelled": cancelled})

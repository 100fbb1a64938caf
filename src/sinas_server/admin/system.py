"""What concerns the installation as a whole."""

from fastapi import Response
from pydantic import BaseModel, Field

from sinas_server.admin import jobs
from sinas_server.kernel.access import AccessResource
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router
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


@system_router.post("/flush-stuck-jobs", response_model=FlushedJobs, summary="Cancel what has run for over two hours")
async def flush_stuck_jobs(runtime: Run, caller: CurrentCaller) -> Response:
    """Executions and turns of agents. Work of a worker that died goes on by itself much earlier."""
    caller.require(SYSTEM.name, "update", None)
    cancelled = await jobs.cancel_stuck(runtime)
    async with runtime.database.unit() as db:
        await audit(db, caller, "flush", ("stuck_jobs", "queue"), {"cancelled": cancelled})
    return JsonAnswer({"cancelled": cancelled})

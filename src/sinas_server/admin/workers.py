"""The workers of the shared pool over HTTP: what there is, how many there are to be, and replacing them."""

import asyncio
from collections.abc import Callable

from fastapi import Response
from pydantic import BaseModel, Field

from sinas_server.admin.system import SYSTEM
from sinas_server.functions.shared_workers import PoolReport, container_name, read_reports, read_wanted, want
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime

workers_router = new_router("/workers", "workers")
MOST = 64
PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 0.2


class WorkerResponse(BaseModel):
    """A shared worker."""

    id: str = Field(description="Its id: that of its function worker, and its process.")
    container_name: str = Field(description="What it is called in lists of containers.")
    status: str = Field(description="`idle`, `busy`, or `draining`: it gets no more and ends with its last execution.")
    created_at: str = Field(description="When it was started.")
    executions: int = Field(description="How many executions it has taken up.")


class WorkerCount(BaseModel):
    """How many there are to be."""

    count: int = Field(description="Workers that are wanted; they start when the first trusted function runs.")
    running: int = Field(description="Workers there are.")


class ScaleWorkersRequest(BaseModel):
    """How many there shall be."""

    target_count: int = Field(ge=1, le=MOST, description="Workers of the whole installation.")


class ScaleWorkersResponse(BaseModel):
    """What was done."""

    action: str = Field(description="`scale_up`, `scale_down` or `none`.")
    previous_count: int = Field(description="How many were wanted before.")
    current_count: int = Field(description="How many are wanted now.")
    added: int = Field(default=0, description="How many more.")
    removed: int = Field(default=0, description="How many less; they finish what they run.")


class ReloadWorkersResponse(BaseModel):
    """What was done."""

    status: str = Field(
        description="`completed`, or `partial` if some could not be replaced or did not report in time."
    )
    total_workers: int = Field(description="How many were to be replaced.")
    success: int = Field(description="How many were.")
    failed: int = Field(description="How many were not.")


def _usable(reports: list[PoolReport]) -> int:
    return sum(worker.status != "draining" for report in reports for worker in report.workers)


@workers_router.get("", response_model=list[WorkerResponse], summary="List the workers of the shared pool")
async def list_workers(runtime: Run, caller: CurrentCaller) -> Response:
    """None before the first trusted function has run, unless they were scaled."""
    caller.require(SYSTEM.name, "read", None)
    return JsonAnswer(
        [
            {
                "id": f"{report.worker}:{worker.pid}",
                "container_name": container_name(report.worker, str(worker.pid)),
                **worker.model_dump(exclude={"pid"}),
            }
            for report in await read_reports(runtime)
            for worker in report.workers
        ]
    )


@workers_router.get("/count", response_model=WorkerCount, summary="Count the workers of the shared pool")
async def count_workers(runtime: Run, caller: CurrentCaller) -> Response:
    """`count` is what is wanted, which `scale` changes."""
    caller.require(SYSTEM.name, "read", None)
    async with runtime.database.unit() as db:
        row = await read_wanted(db)
    count = runtime.settings.default_worker_count if row is None else row.count
    return JsonAnswer({"count": count, "running": _usable(await read_reports(runtime))})


@workers_router.post("/scale", response_model=ScaleWorkersResponse, summary="Have more or fewer shared workers")
async def scale(body: ScaleWorkersRequest, runtime: Run, caller: CurrentCaller) -> Response:
    """Answers when they are there, or after half a minute; those that are too many finish what they run."""
    caller.require(SYSTEM.name, "update", None)
    async with runtime.database.unit() as db:
        row = await read_wanted(db)
        before = runtime.settings.default_worker_count if row is None else row.count
        await want(db, runtime, count=body.target_count)
        await audit(db, caller, "scale", ("workers", "shared"), {"from": before, "to": body.target_count})
    await _until(runtime, lambda reports: not reports or _usable(reports) == body.target_count)
    more = body.target_count - before
    return JsonAnswer(
        {
            "action": "scale_up" if more > 0 else "scale_down" if more < 0 else "none",
            "previous_count": before,
            "current_count": body.target_count,
            "added": max(more, 0),
            "removed": max(-more, 0),
        }
    )


@workers_router.post("/reload", response_model=ReloadWorkersResponse, summary="Replace every shared worker")
async def reload(runtime: Run, caller: CurrentCaller) -> Response:
    """New ones have the packages approved by now; the old ones finish what they run."""
    caller.require(SYSTEM.name, "update", None)
    async with runtime.database.unit() as db:
        generation = (await want(db, runtime, reload=True)).generation
        await audit(db, caller, "reload", ("workers", "shared"))
    reports = await _until(runtime, lambda found: all(report.generation >= generation for report in found))
    done = [report for report in reports if report.generation >= generation and report.problem is None]
    total, success = sum(report.share for report in reports), sum(report.share for report in done)
    status = "completed" if success == total else "partial"
    return JsonAnswer({"status": status, "total_workers": total, "success": success, "failed": total - success})


async def _until(runtime: Runtime, holds: Callable[[list[PoolReport]], bool]) -> list[PoolReport]:
    """What the function workers report once it is so, or after a while."""
    clock = asyncio.get_running_loop()
    deadline = clock.time() + PATIENCE_SECONDS
    while True:
        reports = await read_reports(runtime)
        if holds(reports) or clock.time() > deadline:
            return reports
        await asyncio.sleep(LOOK_SECONDS)

"""The pools of sandboxes over HTTP: what they hold, how many there are, and making them anew.

The API has no sandbox itself: it asks the function workers, and says what each of them did.
"""

from collections.abc import Mapping, Sequence

from fastapi import Response
from pydantic import BaseModel, Field

from sinas_server.admin.system import SYSTEM
from sinas_server.kernel.command import Answer, Json, ask
from sinas_server.kernel.errors import InvalidError, UnavailableError
from sinas_server.kernel.heartbeat import read_heartbeats
from sinas_server.kernel.http import MAX_INT, CurrentCaller, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime

containers_router = new_router("/containers", "containers")
QUEUE = "functions"
TELL_SECONDS = 5.0
EXTRA_SECONDS = 5.0
"""Beyond what a pool takes at most for making sandboxes."""
AWAY: dict[int | str, dict[str, object]] = {
    503: {"description": "No function worker that is alive answers, or Redis does not."}
}


class Container(BaseModel):
    """One sandbox."""

    name: str = Field(description="Its name; with the Docker driver that of its container.")
    executions: int = Field(description="How many it has been used for.")
    age_seconds: float = Field(description="Since it was made.")


class SandboxPool(BaseModel):
    """How many sandboxes there are."""

    idle: int = Field(description="Those that wait for work.")
    in_use: int = Field(description="Those that run something.")
    total: int = Field(description="Both together.")
    max_size: int = Field(description="Most that there may be.")


class WorkerPool(SandboxPool):
    """The pool of one worker."""

    worker: str = Field(description="The worker's name.")
    driver: str = Field(description="What isolates functions there: a level of the native driver, or `docker`.")
    error: str | None = Field(description="Why nothing is known of it; its numbers are 0 then.")


class ContainerStats(SandboxPool):
    """The pools of all function workers."""

    max_executions: int = Field(description="After so many a sandbox is replaced; 1 with the native driver.")
    idle_containers: list[Container] = Field(description="Those that wait.")
    in_use_containers: list[Container] = Field(description="Those that run something.")
    workers: list[WorkerPool] = Field(description="The same by worker.")


class ScaleRequest(BaseModel):
    """How many sandboxes to keep."""

    target: int = Field(ge=0, le=MAX_INT, description="Idle and in use together, over all function workers.")


class ScaledWorker(BaseModel):
    """What one worker did."""

    worker: str = Field(description="The worker's name.")
    previous: int = Field(description="Its sandboxes before.")
    current: int = Field(description="Its sandboxes now.")
    error: str | None = Field(description="Why it did nothing.")


class ScaleResponse(BaseModel):
    """What was done."""

    action: str = Field(description="`scale_up`, `scale_down` or `none`.")
    previous: int = Field(description="Sandboxes before.")
    current: int = Field(description="Sandboxes now. What runs is not interrupted, and each pool keeps its least.")
    added: int = Field(description="How many more there are.")
    removed: int = Field(description="How many fewer there are.")
    workers: list[ScaledWorker] = Field(description="The same by worker.")


class ReloadedWorker(BaseModel):
    """What one worker did."""

    worker: str = Field(description="The worker's name.")
    idle_containers: int = Field(description="Its idle sandboxes before.")
    success: int = Field(description="How many of them are new.")
    error: str | None = Field(description="Why it did nothing.")


class ReloadResponse(BaseModel):
    """What was made anew."""

    status: str = Field(description="`completed`, or `partial` if some failed.")
    idle_containers: int = Field(description="Sandboxes that were idle.")
    success: int = Field(description="How many of them are new.")
    failed: int = Field(description="How many are not: their workers go on trying.")
    workers: list[ReloadedWorker] = Field(description="The same by worker.")


async def ask_all(runtime: Runtime, command: str, seconds: float, arguments: Mapping[str, Json]) -> list[Answer]:
    """What the function workers say to a command. Raises `UnavailableError` if none of them can."""
    answers = await ask(runtime, command, arguments, seconds)
    if answers and not any(answer.error is None for answer in answers):
        reasons = "; ".join(f"{answer.worker}: {answer.error}" for answer in answers)
        raise UnavailableError(f"No function worker answers ({reasons})")
    return answers


async def _tell(runtime: Runtime) -> list[Answer]:
    alive = [beat.name for beat in await read_heartbeats(runtime) if beat.queue == QUEUE]
    return await ask_all(runtime, "sandboxes.tell", TELL_SECONDS, {name: {} for name in alive})


def _sum(answers: Sequence[Answer], field: str) -> int:
    values = (answer.result.get(field, 0) for answer in answers)
    return sum(value for value in values if isinstance(value, int))


def _all(answers: Sequence[Answer], field: str) -> list[object]:
    lists = (answer.result.get(field) for answer in answers)
    return [item for found in lists if isinstance(found, list) for item in found]


@containers_router.get(
    "/stats", response_model=ContainerStats, responses=AWAY, summary="The sandboxes of all function workers"
)
async def stats(runtime: Run, caller: CurrentCaller) -> Response:
    """Asked of the workers now."""
    caller.require(SYSTEM.name, "read", None)
    answers = await _tell(runtime)
    numbers = ("idle", "in_use", "total", "max_size")
    limits = [answer.result.get("max_executions", 0) for answer in answers if answer.error is None]
    workers = [
        {"worker": each.worker, "driver": each.result.get("driver", ""), "error": each.error}
        | {name: each.result.get(name, 0) for name in numbers}
        for each in answers
    ]
    return JsonAnswer(
        {name: _sum(answers, name) for name in numbers}
        | {
            "max_executions": next(iter(limits), 0),
            "idle_containers": _all(answers, "idle_containers"),
            "in_use_containers": _all(answers, "in_use_containers"),
            "workers": workers,
        }
    )


def _shares(target: int, told: Sequence[Answer]) -> dict[str, Json]:
    """The target divided among the workers. Raises `InvalidError` when they cannot have so many."""
    workers = [answer.worker for answer in told if answer.error is None]
    most = _sum(told, "max_size")
    if target > most:
        reason = f"must be at most {most}: SANDBOX_MAX_SIZE of {len(workers)} function workers together"
        raise InvalidError([(("body", "target"), reason)])
    each, rest = divmod(target, len(workers) or 1)
    return {worker: {"target": each + (number < rest)} for number, worker in enumerate(workers)}


@containers_router.post(
    "/scale", response_model=ScaleResponse, responses=AWAY, summary="Keep so many sandboxes from now on"
)
async def scale(body: ScaleRequest, runtime: Run, caller: CurrentCaller) -> Response:
    """Divided evenly among the function workers, until they are started again. Only idle ones are removed."""
    caller.require(SYSTEM.name, "update", None)
    told = await _tell(runtime)
    seconds = runtime.settings.pool_acquire_timeout + EXTRA_SECONDS
    answers = await ask_all(runtime, "sandboxes.scale", seconds, _shares(body.target, told))
    previous, current = _sum(answers, "previous"), _sum(answers, "current")
    async with runtime.database.unit() as db:
        await audit(db, caller, "scale", ("containers", "pool"), {"previous": previous, "current": current})
    change = current - previous
    return JsonAnswer(
        {
            "action": "scale_up" if change > 0 else "scale_down" if change < 0 else "none",
            "previous": previous,
            "current": current,
            "added": max(0, change),
            "removed": max(0, -change),
            "workers": [
                {
                    "worker": answer.worker,
                    "previous": answer.result.get("previous", 0),
                    "current": answer.result.get("current", 0),
                    "error": answer.error,
                }
                for answer in answers
            ],
        }
    )


@containers_router.post(
    "/reload", response_model=ReloadResponse, responses=AWAY, summary="Make every idle sandbox anew"
)
async def reload(runtime: Run, caller: CurrentCaller) -> Response:
    """With the packages approved by now. Sandboxes in use go on, and are replaced when they are given back."""
    caller.require(SYSTEM.name, "update", None)
    told = await _tell(runtime)
    seconds = runtime.settings.pool_acquire_timeout + EXTRA_SECONDS
    workers: dict[str, Json] = {answer.worker: {} for answer in told if answer.error is None}
    answers = await ask_all(runtime, "sandboxes.reload", seconds, workers)
    idle, success = _sum(answers, "idle"), _sum(answers, "renewed")
    async with runtime.database.unit() as db:
        await audit(db, caller, "reload", ("containers", "pool"), {"idle": idle, "success": success})
    complete = success >= idle and all(answer.error is None for answer in answers)
    return JsonAnswer(
        {
            "status": "completed" if complete else "partial",
            "idle_containers": idle,
            "success": success,
            "failed": max(0, idle - success),
            "workers": [
                {
                    "worker": answer.worker,
                    "idle_containers": answer.result.get("idle", 0),
                    "success": answer.result.get("renewed", 0),
                    "error": answer.error,
                }
                for answer in answers
            ],
        }
    )

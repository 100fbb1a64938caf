"""Restarting one container: a sandbox, a shared worker, or with a Docker engine what the platform itself runs in."""

from typing import Annotated, Literal

from fastapi import Path, Response
from pydantic import BaseModel, Field

from sinas_server.admin.containers import AWAY, QUEUE, TELL_SECONDS, ask_all
from sinas_server.admin.system import SYSTEM
from sinas_server.kernel.errors import ConflictError, NotFoundError, UnavailableError
from sinas_server.kernel.heartbeat import Heartbeat, read_heartbeats
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime

restart_router = new_router("/system", "system")
RESTART_SECONDS = 10.0
"""More than a function worker takes to answer, so that what it says is heard."""
SERVERS = ("postgres", "redis")
"""What else `GET /system/health` lists."""
Name = Annotated[
    str,
    Path(
        min_length=1,
        max_length=255,
        description="A name from `GET /containers/stats`, `GET /workers` or `GET /system/health`, or that of a "
        "container or service of the Compose project that the function workers run in.",
    ),
]


class RestartResponse(BaseModel):
    """What was done."""

    status: Literal["restarted", "restarting"] = Field(
        description="`restarting` if it was begun and goes on by itself: its processes have 15 seconds to stop."
    )
    container: str = Field(description="The name that was given.")


@restart_router.post(
    "/containers/{container_name}/restart",
    response_model=RestartResponse,
    responses=AWAY
    | {404: {"description": "Nothing has this name."}, 409: {"description": "It runs in no container known here."}},
    summary="Restart a container",
)
async def restart(container_name: Name, runtime: Run, caller: CurrentCaller) -> Response:
    """A sandbox is replaced, and an execution in it ends as failed; a shared worker is replaced once it has finished.

    Containers of the platform are restarted where function workers use a Docker engine and belong to its Compose
    project; no other container of that engine can be reached.
    """
    caller.require(SYSTEM.name, "update", None)
    beats = await read_heartbeats(runtime)
    worker, name = await _find(runtime, container_name, beats)
    async with runtime.database.unit() as db:  # before: it may be the database
        await audit(db, caller, "restart", ("containers", container_name), {"worker": worker})
    [answer] = await ask_all(runtime, "containers.restart", RESTART_SECONDS, {worker: {"name": name}})
    return JsonAnswer({"status": "restarted" if answer.result["over"] else "restarting", "container": container_name})


async def _find(runtime: Runtime, name: str, beats: list[Heartbeat]) -> tuple[str, str]:
    """The function worker that can restart it, and the name by which it knows it.

    Raises `NotFoundError`, `ConflictError` for what runs in no container, and `UnavailableError`.
    """
    workers = [beat.name for beat in beats if beat.queue == QUEUE]
    hosts = [beat.host for beat in beats if beat.name == name]
    silent: list[str] = []
    for known_as in (name, *hosts):
        told = await ask_all(runtime, "containers.find", TELL_SECONDS, {each: {"name": known_as} for each in workers})
        for answer in told:
            if answer.result.get("found"):
                return answer.worker, known_as
        silent = [f"{answer.worker}: {answer.error}" for answer in told if answer.error is not None]
    if silent:
        raise UnavailableError(f"No container '{name}' is known, and not all function workers answer: {silent[0]}")
    if hosts or name in SERVERS:
        where = f" on {hosts[0]}" if hosts else ""
        raise ConflictError(
            f"'{name}'{where} runs in no container that a function worker can restart: restart it where it was started"
        )
    raise NotFoundError(f"No container '{name}'")

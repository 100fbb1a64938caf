"""How the installation is: every service that is heard of, the machine, and what an operator should look at."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from sqlalchemy import text

from sinas_server.admin import jobs
from sinas_server.backends.host import HostUse, read_host
from sinas_server.functions import dead_letters
from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.heartbeat import Heartbeat, read_heartbeats
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

BACKLOG = 50
"""Jobs that wait before it is worth a warning."""
FULL, FILLING = 90.0, 75.0
"""Percent of a disk or memory from which on it is a warning, or worth knowing."""
ANSWER_SECONDS = 2.0
NEEDED: Mapping[str, tuple[Literal["critical", "warning"], str]] = {
    "functions": ("critical", "No function worker is running: executions wait until one is started"),
    "agents": ("critical", "No agent worker is running: messages are not answered until one is started"),
    "tasks": ("warning", "No scheduler is running: schedules, mails and clean-up wait until one is started"),
}
Level = Literal["critical", "warning", "info"]


class MemoryUse(BaseModel):
    """The memory of a service."""

    used_mb: float = Field(description="Megabytes in use.")
    limit_mb: float | None = Field(description="Megabytes it may use; null for no limit of its own.")
    percent: float | None = Field(description="How much of the limit is used; null without one.")


class Service(BaseModel):
    """One server or process of the installation."""

    name: str = Field(description="Its name; a worker's is that in its leases.")
    service: str = Field(description="What it is: `postgres`, `redis`, `api`, `functions`, `agents`, `tasks`.")
    status: Literal["running", "down"] = Field(description="Whether it answers, or gave a sign of life in time.")
    health: Literal["healthy", "unhealthy"] = Field(description="Whether it can do its work.")
    uptime_seconds: int | None = Field(description="Seconds since it started; null where that is not known.")
    cpu_percent: float | None = Field(description="Of one processor; null unless asked for and known.")
    memory: MemoryUse | None = Field(description="Its memory; null unless asked for and known.")
    host: str | None = Field(default=None, description="The machine or container it runs on.")
    version: str | None = Field(default=None, description="The version it runs.")


class HealthWarning(BaseModel):
    """Something to look at."""

    level: Level = Field(description="`critical`, `warning` or `info`.")
    message: str = Field(description="What is wrong and what follows.")


class Host(BaseModel):
    """The machine that the API runs on."""

    cpus: int = Field(description="Processors.")
    cpu_percent: float = Field(description="How busy they are together.")
    memory_percent: float = Field(description="How full the memory is.")
    memory_used_mb: float = Field(description="Megabytes in use.")
    memory_total_mb: float = Field(description="Megabytes there are.")
    disk_percent: float = Field(description="How full the disk of the data directory is.")
    disk_used_gb: float = Field(description="Gigabytes in use.")
    disk_total_gb: float = Field(description="Gigabytes there are.")


class HealthResponse(BaseModel):
    """The health of the installation."""

    warnings: list[HealthWarning] = Field(description="What to look at, the most urgent first.")
    services: list[Service] = Field(description="Servers first, then the platform's processes by name.")
    host: Host = Field(description="The machine of the API process that answered.")


@dataclass(frozen=True)
class _Seen:
    """What a look around found."""

    servers: Sequence[Service]
    alive: Sequence[Heartbeat] | None
    host: HostUse
    pending: Mapping[str, int]
    dead: int


async def read_health(runtime: Runtime, db: Db, *, stats: bool) -> HealthResponse:
    """Look at everything once. `stats`: with what each service uses."""
    host, redis = await asyncio.gather(read_host(runtime.settings.sinas_data_dir), _redis(runtime, stats=stats))
    try:
        alive: Sequence[Heartbeat] | None = await read_heartbeats(runtime)
    except UnavailableError:
        alive = None
    seen = _Seen(
        servers=(await _postgres(db), redis),
        alive=alive,
        host=host,
        pending=await jobs.count_pending(db),
        dead=await dead_letters.count_dead(db),
    )
    processes = sorted((_process(beat, stats=stats) for beat in alive or ()), key=lambda service: service.name)
    return HealthResponse(warnings=_warnings(seen), services=[*seen.servers, *processes], host=_host(host))


async def _postgres(db: Db) -> Service:
    found = (
        await db.execute(
            text(
                "SELECT extract(epoch FROM now() - pg_postmaster_start_time())::int AS uptime, "
                "current_setting('server_version') AS version"
            )
        )
    ).one()
    return Service(
        name="postgres",
        service="postgres",
        status="running",
        health="healthy",
        uptime_seconds=found.uptime,
        cpu_percent=None,
        memory=None,
        version=found.version,
    )


async def _redis(runtime: Runtime, *, stats: bool) -> Service:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            info = await runtime.redis.info()
    except (RedisError, OSError, TimeoutError):
        return Service(
            name="redis",
            service="redis",
            status="down",
            health="unhealthy",
            uptime_seconds=None,
            cpu_percent=None,
            memory=None,
        )
    return Service(
        name="redis",
        service="redis",
        status="running",
        health="healthy",
        uptime_seconds=info["uptime_in_seconds"],
        cpu_percent=None,
        memory=_memory(info["used_memory"], info["maxmemory"] or None) if stats else None,
        version=info.get("valkey_version") or info["redis_version"],
    )


def _process(beat: Heartbeat, *, stats: bool) -> Service:
    return Service(
        name=beat.name,
        service=beat.queue,
        status="running",
        health="healthy",
        uptime_seconds=max(0, round(time.time() - beat.started_at)),
        cpu_percent=beat.cpu_percent if stats else None,
        memory=_memory(beat.memory_bytes, beat.memory_limit) if stats else None,
        host=beat.host,
        version=beat.version,
    )


def _memory(used: int, limit: int | None) -> MemoryUse:
    percent = None if limit is None else round(100 * used / limit, 1)
    return MemoryUse(used_mb=_megabytes(used), limit_mb=None if limit is None else _megabytes(limit), percent=percent)


def _megabytes(count: int) -> float:
    return round(count / (1 << 20), 1)


def _host(use: HostUse) -> Host:
    return Host(
        cpus=use.cpus,
        cpu_percent=use.cpu_percent,
        memory_percent=use.memory_percent,
        memory_used_mb=_megabytes(use.memory_used),
        memory_total_mb=_megabytes(use.memory_total),
        disk_percent=use.disk_percent,
        disk_used_gb=round(use.disk_used / (1 << 30), 2),
        disk_total_gb=round(use.disk_total / (1 << 30), 2),
    )


def _warnings(seen: _Seen) -> list[HealthWarning]:
    found = [
        *(
            HealthWarning(level="critical", message=f"{one.name} does not answer")
            for one in seen.servers
            if _is_down(one)
        ),
        *_missing(seen.alive),
        *_waiting(seen),
        *_filling("disk", seen.host.disk_percent),
        *_filling("memory", seen.host.memory_percent),
    ]
    order: tuple[Level, ...] = ("critical", "warning", "info")
    return sorted(found, key=lambda warning: order.index(warning.level))


def _is_down(service: Service) -> bool:
    return service.status == "down"


def _missing(alive: Sequence[Heartbeat] | None) -> list[HealthWarning]:
    if alive is None:
        return [HealthWarning(level="warning", message="Which workers are running is not known while Redis is away")]
    there = {beat.queue for beat in alive}
    return [
        HealthWarning(level=level, message=message) for queue, (level, message) in NEEDED.items() if queue not in there
    ]


def _waiting(seen: _Seen) -> list[HealthWarning]:
    found = [
        HealthWarning(level="warning", message=f"{count} jobs of the queue {queue} wait for a worker")
        for queue, count in seen.pending.items()
        if count > BACKLOG
    ]
    if seen.dead:
        found.append(HealthWarning(level="warning", message=f"{seen.dead} dead letters: see GET /api/v1/queue/dlq"))
    return found


def _filling(what: str, percent: float) -> list[HealthWarning]:
    if percent <= FILLING:
        return []
    level: Level = "warning" if percent > FULL else "info"
    return [HealthWarning(level=level, message=f"The {what} of the host is {percent:g} % full")]

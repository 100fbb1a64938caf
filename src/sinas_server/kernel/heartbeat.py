"""Signs of life: each process of the platform keeps a Redis key that runs out when the process is gone."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from typing import cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from redis.exceptions import RedisError

from sinas_server.backends.host import ProcessSampler
from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.loop import Loop, run_loop
from sinas_server.kernel.runtime import Runtime

EVERY_SECONDS = 10.0
LIFE_SECONDS = 30
"""A process that was silent for longer is taken for dead."""
NAMES = "sinas:heartbeats"
"""The names of all processes by the time they were last seen, so that reading needs no scan of Redis."""
NAMES_SECONDS = 3600


class PoolStats(BaseModel):
    """The sandboxes of a function worker."""

    model_config = ConfigDict(frozen=True)
    idle: int = Field(description="Sandboxes that wait for work.")
    in_use: int = Field(description="Sandboxes that run something.")
    max_size: int = Field(description="Most sandboxes there may be.")


class Load(BaseModel):
    """How much a process has to do."""

    model_config = ConfigDict(frozen=True)
    slots: int = Field(default=0, description="How much it does at the same time; 0 for what is no worker.")
    running: int = Field(default=0, description="How much it does now; nested work passes the limit.")
    pool: PoolStats | None = Field(default=None, description="Its sandboxes, if it runs functions.")


class Heartbeat(Load):
    """A process as it was at its last sign of life."""

    name: str = Field(description="Its name, which its leases carry too.")
    queue: str = Field(description="What it works on: `functions`, `agents`, `tasks`, or `api`.")
    pid: int = Field(description="Its process id on its host.")
    host: str = Field(description="The name of its host or container.")
    version: str = Field(description="The platform's version that it runs.")
    started_at: float = Field(description="When it began, in seconds since 1970.")
    seen_at: float = Field(description="When it was last heard of, in seconds since 1970.")
    cpu_percent: float = Field(default=0.0, description="Of one processor, between its last two signs of life.")
    memory_bytes: int = Field(default=0, description="Its resident memory.")
    memory_limit: int | None = Field(default=None, description="Bytes that its control group may use, if limited.")


def _key(name: str) -> str:
    return f"sinas:heartbeat:{name}"


@asynccontextmanager
async def beating(runtime: Runtime, queue: str, load: Callable[[], Load] = Load) -> AsyncIterator[None]:
    """Give signs of life while the context is open. A Redis that is away misses some, and nothing else depends on them.

    Who stops in order is forgotten at once; who is killed, `LIFE_SECONDS` later.
    """
    process = {
        "name": runtime.worker_name,
        "queue": queue,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "version": version("sinas-server"),
        "started_at": time.time(),
    }

    sampler = ProcessSampler()

    async def beat(runtime: Runtime) -> None:
        now = time.time()
        values = Heartbeat.model_validate({**process, "seen_at": now, **asdict(sampler.read()), **dict(load())})
        async with runtime.redis.pipeline(transaction=False) as pipe:
            pipe.set(_key(values.name), values.model_dump_json(), ex=LIFE_SECONDS)
            pipe.zadd(NAMES, {values.name: now})
            pipe.zremrangebyscore(NAMES, 0, now - NAMES_SECONDS)
            pipe.expire(NAMES, NAMES_SECONDS)
            await pipe.execute()

    task = asyncio.create_task(run_loop(runtime, Loop("heartbeat", EVERY_SECONDS, beat)))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with suppress(RedisError, OSError):
            await runtime.redis.delete(_key(runtime.worker_name))


async def read_heartbeats(runtime: Runtime) -> list[Heartbeat]:
    """Every process that gave a sign of life within the last `LIFE_SECONDS`, by queue and name.

    Raises `UnavailableError` while Redis is away: then nothing is known.
    """
    try:
        names = cast(list[bytes], await runtime.redis.zrange(NAMES, 0, -1))
        found = await runtime.redis.mget([_key(name.decode()) for name in names]) if names else []
    except (RedisError, OSError) as error:
        raise UnavailableError("Redis does not answer: which processes are alive is not known") from error
    alive: list[Heartbeat] = []
    for text in found:
        if text is not None:
            with suppress(ValidationError):  # of another version
                alive.append(Heartbeat.model_validate_json(text))
    return sorted(alive, key=lambda beat: (beat.queue, beat.name))

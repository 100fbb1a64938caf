"""Commands to running workers: the API sends one to each by name, over Redis, and gathers the answers.

A command that nobody took within its time is void: a worker that comes back later does not carry it out.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import cast

import structlog
from pydantic import JsonValue
from redis.exceptions import RedisError

from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.runtime import Runtime

log = structlog.get_logger()

KEPT_SECONDS = 60
LOOK_SECONDS = 5.0
"""A worker looks at least so often, should a signal be lost."""

Json = dict[str, JsonValue]
Handler = Callable[[Runtime, Json], Awaitable[Json]]
"""What a worker does with a command's arguments; `ValueError` says why it cannot."""


@dataclass(frozen=True)
class Answer:
    """What one worker said."""

    worker: str
    result: Json
    error: str | None = None
    """Why there is no result."""


def _queue(worker: str) -> str:
    return f"sinas:commands:{worker}"


def _topic(worker: str) -> str:
    return f"command:{worker}"


async def ask(runtime: Runtime, name: str, arguments: Mapping[str, Json], seconds: float) -> list[Answer]:
    """Have each worker carry out a command with its own arguments; one answer for each, in the same order.

    A worker that does not answer within `seconds` has an answer that says so. Raises `UnavailableError` while Redis is
    away.
    """
    reply = f"sinas:answers:{secrets.token_hex(8)}"
    until = time.time() + seconds
    try:
        for worker, given in arguments.items():
            message = {"name": name, "arguments": given, "reply": reply, "until": until}
            async with runtime.redis.pipeline(transaction=False) as pipe:
                pipe.rpush(_queue(worker), json.dumps(message))
                pipe.expire(_queue(worker), KEPT_SECONDS)
                await pipe.execute()
            await runtime.signals.signal(_topic(worker))
        answers = await _gather(runtime, reply, len(arguments), until)
    except (RedisError, OSError) as error:
        raise UnavailableError("Redis does not answer: workers cannot be reached") from error
    silent = f"it did not answer within {seconds:g} s"
    return [answers.get(worker, Answer(worker, {}, silent)) for worker in arguments]


async def _gather(runtime: Runtime, reply: str, count: int, until: float) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    while len(found) < count and (left := until - time.time()) > 0:
        taken = cast("tuple[bytes, bytes] | None", await runtime.redis.blpop([reply], timeout=max(1, round(left))))
        if taken is not None:
            answer = Answer(**json.loads(taken[1]))
            found[answer.worker] = answer
    return found


async def obey(runtime: Runtime, handlers: Mapping[str, Handler]) -> None:
    """Carry out what this worker is told, until canceled."""
    running: set[asyncio.Task[None]] = set()
    async with runtime.signals.listen(_topic(runtime.worker_name)) as listener:
        while True:
            for message in await _take(runtime):
                task = asyncio.create_task(_carry_out(runtime, handlers, message))
                running.add(task)
                task.add_done_callback(running.discard)
            await listener.wait(LOOK_SECONDS)


async def _take(runtime: Runtime) -> list[bytes]:
    try:
        taken = await runtime.redis.lpop(_queue(runtime.worker_name), 100)
    except (RedisError, OSError):  # the next look finds them
        return []
    return cast("list[bytes]", taken or [])


async def _carry_out(runtime: Runtime, handlers: Mapping[str, Handler], message: bytes) -> None:
    command = json.loads(message)
    if command["until"] < time.time():
        return
    result: Json = {}
    error: str | None = None
    try:
        result = await handlers[command["name"]](runtime, command["arguments"])
    except KeyError:
        error = f"it knows no command {command['name']}: it runs another version"
    except ValueError as problem:
        error = str(problem)
    answer = json.dumps({"worker": runtime.worker_name, "result": result, "error": error})
    try:
        async with runtime.redis.pipeline(transaction=False) as pipe:
            pipe.rpush(command["reply"], answer)
            pipe.expire(command["reply"], KEPT_SECONDS)
            await pipe.execute()
    except (RedisError, OSError) as problem:
        log.warning("an answer to a command was lost", command=command["name"], error=str(problem))

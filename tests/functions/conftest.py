"""A platform with functions: the API on a real port, a worker with the native sandbox, and someone to call it."""

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import JsonValue

from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from sinas_server.backends.sandbox.shared import SharedConfig, SharedPool
from sinas_server.functions.jobs import EXECUTION_JOB
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from tests.people import Person

ECHO = "def handler(input_data, context):\n    return input_data\n"
Json = dict[str, Any]
Declare = Callable[..., Awaitable[Json]]


@pytest.fixture
async def port(app: FastAPI) -> AsyncIterator[int]:
    """The application on a port of its own, as functions reach it from inside."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False, ws="none")
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = server.force_exit = True
        await task


@asynccontextmanager
async def working(
    runtime: Runtime,
    name: str = "functions-test",
    port: int = 8000,
    memory_bytes: int = 1 << 30,
    stop_seconds: float = 60.0,
) -> AsyncIterator[Worker[Any]]:
    """A function worker with two slots, a sandbox and a shared pool of its own, while the block runs."""
    sandbox = open_sandbox(SandboxConfig(min_size=1, min_idle=1, max_size=12, platform=("127.0.0.1", port)))
    shared = SharedPool(
        SharedConfig(count=2, platform=("127.0.0.1", port), memory_bytes=memory_bytes, stop_seconds=stop_seconds)
    )
    await sandbox.start()
    await shared.start()
    equipped = dataclasses.replace(runtime, sandbox=sandbox, shared_pool=shared, worker_name=name)
    made = Worker(equipped, EXECUTION_JOB, 2)
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await shared.close()
        await sandbox.close()


def pool_of(worker: Worker[Any]) -> SharedPool:
    """The shared pool of a function worker."""
    return cast(SharedPool, worker.runtime.shared_pool)


@pytest.fixture
async def worker(runtime: Runtime, port: int) -> AsyncIterator[Worker[Any]]:
    """A function worker whose sandbox reaches the API."""
    async with working(runtime, port=port) as made:
        yield made


@pytest.fixture
def declare(user: Person) -> Declare:
    """Creates a function of the user: `await declare("name", code, **fields)`."""

    async def create(name: str, code: str = ECHO, by: httpx2.AsyncClient = user.http, **fields: JsonValue) -> Json:
        body = {"name": name, "code": code, "input_schema": {}, "output_schema": {}, **fields}
        answer = await by.post("/api/v1/functions", json=body)
        assert answer.status_code == 201, answer.text
        return cast(Json, answer.json())

    return create


@pytest.fixture
def share(declare: Declare, admin: Person) -> Declare:
    """Creates a function of the administrator that runs in the shared pool."""

    async def create(name: str, code: str, **fields: JsonValue) -> Json:
        return await declare(name, code, admin.http, shared_pool=True, **fields)

    return create


async def queue(person: Person, name: str, given: Json | None = None) -> str:
    answer = await person.http.post(f"/functions/default/{name}/execute/async", json={"input": given or {}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["execution_id"])


async def run(
    person: Person,
    name: str,
    given: JsonValue = None,
    *,
    timeout: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Json:
    """The answer of a synchronous execution."""
    body = {"input": given or {}, "timeout": timeout}
    path = f"/functions/default/{name}/execute"
    answer = await person.http.post(path, json=body, headers=headers, timeout=90)
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())


async def until(person: Person, execution_id: str, status: str) -> Json:
    """An execution as soon as it has this status."""
    while True:
        answer = await person.http.get(f"/executions/{execution_id}")
        assert answer.status_code == 200, answer.text
        if answer.json()["status"] == status:
            return cast(Json, answer.json())
        await asyncio.sleep(0.02)

"""A platform that resolves packages, and a function worker that uses them."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from sinas_server.backends.sandbox.native import NativeSandbox, SandboxConfig
from sinas_server.dependencies.follow import PackageFollower
from sinas_server.dependencies.install import open_directories
from sinas_server.dependencies.jobs import PACKAGE_JOB
from sinas_server.functions.jobs import EXECUTION_JOB
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from tests.packages import CACHE
from tests.people import Person

Json = dict[str, Any]


@pytest.fixture(autouse=True)
def _one_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CACHE_DIR", str(CACHE))


@asynccontextmanager
async def resolving(runtime: Runtime) -> AsyncIterator[None]:
    """What the scheduler does about packages, while the block runs."""
    task = asyncio.create_task(Worker(runtime, PACKAGE_JOB, 1).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def following(runtime: Runtime) -> AsyncIterator[NativeSandbox]:
    """A function worker with the packages below the data directory of `runtime`, while the block runs."""
    sandbox = NativeSandbox(SandboxConfig(min_size=1, min_idle=1, max_size=4))
    await sandbox.start()
    directories = open_directories(runtime.settings)
    follower = PackageFollower(directories, [sandbox])
    worker = Worker(dataclasses.replace(runtime, sandbox=sandbox, worker_name="functions"), EXECUTION_JOB, 2)

    stopping = asyncio.Event()

    async def follow() -> None:
        while not stopping.is_set():
            await follower.step(runtime)
            await asyncio.sleep(0.05)

    working, steps = asyncio.create_task(worker.run()), asyncio.create_task(follow())
    try:
        yield sandbox
    finally:
        stopping.set()
        working.cancel()
        await asyncio.gather(working, steps, return_exceptions=True)
        await sandbox.close()
        directories.close()


@pytest.fixture
async def resolver(runtime: Runtime) -> AsyncIterator[None]:
    """Approvals are resolved."""
    async with resolving(runtime):
        yield


@pytest.fixture
async def functions(runtime: Runtime, resolver: None) -> AsyncIterator[NativeSandbox]:
    """Approvals are resolved, and functions run with them."""
    async with following(runtime) as sandbox:
        yield sandbox


async def approve(admin: Person, package_name: str, version: str | None = None) -> Json:
    """An approval."""
    body = {"package_name": package_name, "version": version}
    answer = await admin.http.post("/api/v1/dependencies", json=body)
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())


async def until(admin: Person, package_name: str, status: str) -> Json:
    """An approval as soon as it has this status."""
    found: list[Json] = []

    async def has_it() -> bool:
        listed = (await admin.http.get("/api/v1/dependencies")).json()
        found[:] = [each for each in listed if each["package_name"] == package_name]
        return bool(found) and found[0]["status"] == status

    await eventually(has_it, lambda: f"{package_name} is {status}: {found}")
    return found[0]


async def eventually(condition: Callable[[], Awaitable[bool]], what: Callable[[], str]) -> None:
    """Wait for what happens in the background."""
    for _ in range(1800):
        if await condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never happened: {what()}")


async def sets(admin: Person) -> list[Json]:
    """The sets of packages, the newest first."""
    return cast(list[Json], (await admin.http.get("/api/v1/dependencies/sets")).json())


async def call(person: Person, code: str) -> Json:
    """What a function with this code answers."""
    name = f"f{abs(hash(code))}"
    made = await person.http.post("/api/v1/functions", json={"name": name, "code": code})
    assert made.status_code in (201, 400), made.text
    answer = await person.http.post(f"/functions/default/{name}/execute", json={"input": {}}, timeout=60)
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())

"""One sandbox of every driver for the contract tests, and short ways to run code in it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sinas_server.backends.sandbox import Limits, OnOutput, Outcome, PackageSet, Sandbox, Task
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from tests.backends.sandbox.engine import open_docker

PACKAGES = Path(np.__file__).parent.parent
DRIVERS: dict[str, Callable[[SandboxConfig], Sandbox]] = {"native": open_sandbox, "docker": open_docker}
Run = Callable[..., Awaitable[Outcome]]
HELD = """import os, sys, time
def handler(i, c):
    root = next(path for path in sys.path if os.path.exists(path + '/thing.py'))
    while not os.path.exists(root + '/go'): time.sleep(0.05)
    import thing
    return thing.VERSION"""
"""Runs until there is a file `go` in its `package_set`."""


def task(code: str, **changes: object) -> Task:
    """A task that calls `handler`."""
    made = Task(code, ("handler", "legacy"), {"a": 1}, {"user_id": "u"}, Limits(wall_seconds=20))
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def held() -> Task:
    return task(HELD, limits=Limits(wall_seconds=100))


def package_set(root: Path, version: int, body: str = "") -> PackageSet:
    """A set with a module `thing` that knows its version."""
    root.chmod(0o755)
    path = root / f"set-{version}"
    path.mkdir()
    (path / "thing.py").write_text(f"VERSION = {version}\n{body}")
    return PackageSet(f"hash-{version}", path, ("thing",))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One event loop per module, so that its tests share a sandbox."""
    return "asyncio"


@pytest.fixture(params=DRIVERS, scope="module")
def driver(request: pytest.FixtureRequest) -> Callable[[SandboxConfig], Sandbox]:
    """How to open a sandbox of each driver."""
    return DRIVERS[request.param]


@pytest.fixture(scope="module")
async def sandbox(driver: Callable[[SandboxConfig], Sandbox]) -> AsyncIterator[Sandbox]:
    """A started sandbox with numpy and requests."""
    opened = driver(SandboxConfig(packages=(PACKAGES,), preload=("numpy", "requests"), min_size=2, max_size=6))
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def run(sandbox: Sandbox) -> Run:
    """Run code and give its outcome."""

    async def run_code(code: str, on_output: OnOutput | None = None, **changes: object) -> Outcome:
        return await sandbox.run(task(code, **changes), on_output)

    return run_code


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that happens in the background."""
    for _ in range(1800):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never happened: {what}")

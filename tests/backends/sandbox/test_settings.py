"""Each setting that shapes the pool or an execution: set as operators set it, seen in effect on every driver."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from sinas_server.backends.sandbox import Ending, Outcome, Sandbox, SandboxBusy, Task
from sinas_server.backends.sandbox.choose import start_sandbox
from sinas_server.backends.sandbox.config import limits
from sinas_server.backends.sandbox.docker import sandbox as docker_driver
from sinas_server.backends.sandbox.native import LevelName
from sinas_server.settings import Settings, load_settings
from tests.backends.sandbox.conftest import DRIVERS, until
from tests.backends.sandbox.engine import docker, image, missing_engine

ONE = "def handler(i, c): return 1"
SLEEP = "import time\ndef handler(i, c):\n    print('begun')\n    time.sleep(600)"
SPIN = "def handler(i, c):\n    print('begun')\n    while True: pass"
Configured = Callable[..., AbstractAsyncContextManager[Sandbox]]


@pytest.fixture(params=DRIVERS)
def configured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Configured:
    """Opens a sandbox of each driver from environment variables, as a function worker does."""
    if request.param == "docker" and missing_engine() is not None:
        pytest.skip(missing_engine() or "")

    @asynccontextmanager
    async def opened(**variables: str) -> AsyncIterator[Sandbox]:
        chosen = {"SANDBOX_DRIVER": request.param, "SINAS_DATA_DIR": str(tmp_path)}
        if request.param == "docker":
            chosen["SANDBOX_IMAGE"] = image()
        sizes = {"SANDBOX_MIN_SIZE": "1", "SANDBOX_MIN_IDLE": "0"}
        for name, value in (chosen | sizes | variables).items():
            monkeypatch.setenv(name, value)
        sandbox = await start_sandbox(load_settings(), f"test-{os.getpid()}")
        try:
            yield sandbox
        finally:
            await sandbox.close()

    return opened


def of_settings(code: str, seconds: float = 60) -> Task:
    """A task as the platform makes it."""
    return Task(code, ("handler",), None, {}, limits(load_settings(), seconds))


async def begun(sandbox: Sandbox, code: str) -> "asyncio.Task[Outcome]":
    """An execution that has printed something."""
    printed = asyncio.Event()
    running = asyncio.create_task(sandbox.run(of_settings(code), lambda _name, _text: printed.set()))
    printing = asyncio.create_task(printed.wait())
    await asyncio.wait({running, printing}, return_when=asyncio.FIRST_COMPLETED)
    assert printed.is_set(), await running
    return running


async def stopped(*running: "asyncio.Task[Outcome]") -> None:
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_sandbox_min_size(configured: Configured) -> None:
    async with configured(SANDBOX_MIN_SIZE="3") as sandbox:
        assert sandbox.stats().idle == 3


async def test_sandbox_min_idle(configured: Configured) -> None:
    async with configured(SANDBOX_MIN_IDLE="2", SANDBOX_MAX_SIZE="4") as sandbox:
        running = [await begun(sandbox, SLEEP) for _ in range(2)]
        await until(lambda: (sandbox.stats().in_use, sandbox.stats().idle) == (2, 2), "two wait beside two that run")
        await stopped(*running)


async def test_sandbox_max_size_and_pool_acquire_timeout(configured: Configured) -> None:
    async with configured(SANDBOX_MAX_SIZE="1", POOL_ACQUIRE_TIMEOUT="0.5") as sandbox:
        assert sandbox.stats().max_size == 1
        running = await begun(sandbox, SLEEP)
        with pytest.raises(SandboxBusy, match=r"no sandbox became free within 0\.5 s: 1 of 1 are in use"):
            await sandbox.run(of_settings(ONE))
        await stopped(running)


async def test_a_long_acquire_timeout_waits(configured: Configured) -> None:
    async with configured(SANDBOX_MAX_SIZE="1", POOL_ACQUIRE_TIMEOUT="60") as sandbox:
        running = await begun(sandbox, SLEEP)
        waiting = asyncio.create_task(sandbox.run(of_settings(ONE)))
        await until(lambda: sandbox.stats().in_use == 1, "one runs")
        await stopped(running)
        assert (await waiting).result == 1


async def test_sandbox_max_executions(configured: Configured) -> None:
    async with configured(SANDBOX_MAX_EXECUTIONS="2", SANDBOX_MAX_SIZE="1") as sandbox:
        fresh = sandbox.stats().max_executions == 1  # the native driver's are used once, whatever is set
        seen: list[str] = []
        for _ in range(4):
            await until(lambda: sandbox.stats().idle == 1, "one waits")
            seen.append(sandbox.stats().idle_members[0].name)
            assert (await sandbox.run(of_settings(ONE))).result == 1
        assert [seen.count(name) for name in dict.fromkeys(seen)] == ([1, 1, 1, 1] if fresh else [2, 2])


@pytest.mark.parametrize("seconds", ["0.1", "3600"])
async def test_function_container_idle_timeout(
    configured: Configured, seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_driver, "HEALTH_SECONDS", 0.2)
    variables = {"FUNCTION_CONTAINER_IDLE_TIMEOUT": seconds, "SANDBOX_MAX_SIZE": "3"}
    async with configured(**variables) as sandbox:
        kept_warm = sandbox.level.name == "docker" and seconds == "3600"
        await stopped(*[await begun(sandbox, SLEEP) for _ in range(3)])
        await until(lambda: sandbox.stats().in_use == 0, "none runs")
        if kept_warm:  # containers wait to be used again
            await until(lambda: sandbox.stats().idle == 3, "all three are ready again")
        else:  # the native driver makes each anew and never keeps more than the least
            await until(lambda: sandbox.stats().total == 1, "no more than the least are left")


async def test_max_function_memory(configured: Configured) -> None:
    async with configured(MAX_FUNCTION_MEMORY="96") as sandbox:
        ends = {}
        for megabytes in (40, 200):
            task = of_settings(f"def handler(i, c): return len(bytes(b'x' * ({megabytes} << 20)))")
            ends[megabytes] = await sandbox.run(task)
        assert ends[40].result == 40 << 20
        assert (ends[200].ending, ends[200].error) == (Ending.MEMORY, "the memory limit of 96 MB was hit")


async def test_max_function_storage(configured: Configured) -> None:
    write = (
        "def handler(i, c):\n    with open('/tmp/x', 'wb') as f:\n        for n in range(16):\n"
        "            try: f.write(b'x' * (1 << 20)); f.flush()\n            except OSError as e: return [n, e.errno]\n"
    )
    async with configured(MAX_FUNCTION_STORAGE="8m") as sandbox:
        found = (await sandbox.run(of_settings(write))).result
        assert isinstance(found, list)
        written, errno = found
        assert written in (7, 8)
        assert errno in (28, 27)  # ENOSPC; EFBIG where only single files can be limited
    async with configured(MAX_FUNCTION_STORAGE="32m") as sandbox:
        assert (await sandbox.run(of_settings(write))).result is None


def _pid_on_the_host(name: str) -> int:
    if name.startswith("sandbox-"):
        return int(name.removeprefix("sandbox-"))
    return int(docker("inspect", "--format", "{{.State.Pid}}", name))


def _cpu_group(pid: int) -> Path:
    """The control group that limits a process' processor time."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return Path("/sys/fs/cgroup/cpu") / path.lstrip("/")
        if number == "0" and (group := Path("/sys/fs/cgroup") / path.lstrip("/")).joinpath("cpu.max").exists():
            return group
    raise AssertionError("it has no control group")


async def test_max_function_cpu(configured: Configured) -> None:
    async with configured(MAX_FUNCTION_CPU="0.25") as sandbox:
        if sandbox.level.name not in ("docker", LevelName.CGROUPS):
            pytest.skip("without control groups the rate is not limited, and this level says so")
        running = await begun(sandbox, SPIN)
        [member] = sandbox.stats().in_use_members
        group = _cpu_group(_pid_on_the_host(member.name))
        given = [path.read_text() for path in (group / "cpu.cfs_quota_us", group / "cpu.max") if path.exists()]
        assert given[0].split()[0] == "25000"  # of the period of 100 ms
        await until(lambda: "nr_throttled 0\n" not in (group / "cpu.stat").read_text(), "the kernel holds it back")
        await stopped(running)


def test_storage_is_never_more_than_there_is() -> None:
    """What can be written is in memory: a large value does not make `/tmp` larger."""
    assert limits(Settings(_env_file=None), 1).tmp_bytes == 100 << 20

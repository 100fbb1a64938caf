"""Sets of packages, on every driver: the next execution has the new one, one that runs keeps its own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sinas_server.backends.sandbox import Ending, Outcome, Sandbox, SandboxUnavailable
from sinas_server.backends.sandbox.native import NativeSandbox, SandboxConfig
from tests.backends.sandbox.conftest import held, package_set, task, until

VERSION = "import thing\ndef handler(i, c): return thing.VERSION"


@pytest.fixture
async def own(driver: Callable[[SandboxConfig], Sandbox]) -> AsyncIterator[Sandbox]:
    opened = driver(SandboxConfig(min_size=2, min_idle=1, max_size=4))
    await opened.start()
    yield opened
    await opened.close()


async def run(sandbox: Sandbox, code: str = VERSION) -> Outcome:
    return await sandbox.run(task(code))


async def test_the_next_execution_has_the_new_set_and_a_running_one_keeps_its_own(own: Sandbox, tmp_path: Path) -> None:
    assert (await run(own)).ending is Ending.ERROR
    first = package_set(tmp_path, 1)
    await own.use(first)
    assert (await run(own)).result == 1
    await until(lambda: own.stats().idle == 2, "two wait")
    running = [asyncio.create_task(own.run(held())) for _ in range(2)]
    await until(lambda: own.stats().in_use == 2, "both run")
    await own.use(package_set(tmp_path, 2))
    assert (await run(own)).result == 2
    (first.path / "go").touch()
    assert [(await each).result for each in running] == [1, 1]
    await own.use(None)
    assert (await run(own)).ending is Ending.ERROR


@pytest.mark.parametrize("body", ["import os\nos._exit(3)", "raise RuntimeError('not here')", "1 / 0"])
async def test_what_cannot_be_preloaded_does_no_harm_to_others(own: Sandbox, tmp_path: Path, body: str) -> None:
    await own.use(package_set(tmp_path, 3, body))
    assert (await run(own, "def handler(i, c): return 'fine'")).result == "fine"


async def test_a_preloaded_package_is_loaded_already(own: Sandbox, tmp_path: Path) -> None:
    await own.use(package_set(tmp_path, 4))
    assert (await run(own, "import sys\ndef handler(i, c): return 'thing' in sys.modules")).result is True


async def test_many_switches_under_load_lose_no_execution(own: Sandbox, tmp_path: Path) -> None:
    sets = [package_set(tmp_path, number) for number in (5, 6)]
    await own.use(sets[0])
    stop, seen = asyncio.Event(), list[object]()

    async def call() -> None:
        while not stop.is_set():
            seen.append((await run(own)).result)

    callers = [asyncio.create_task(call()) for _ in range(3)]
    for version in (6, 5, 6, 5):
        await own.use(sets[version - 5])
        await until(lambda: seen[-3:] == [version] * 3, f"all see {version}")  # noqa: B023 - awaited here
    stop.set()
    await asyncio.gather(*callers)
    assert set(seen) == {5, 6}


async def test_the_zygote_of_an_old_set_goes_away(tmp_path: Path) -> None:
    sandbox = NativeSandbox(SandboxConfig(min_size=1, min_idle=1, max_size=2))
    await sandbox.start()
    try:
        first = package_set(tmp_path, 7)
        await sandbox.use(first)
        old = sandbox.zygote_pid
        running = asyncio.create_task(sandbox.run(held()))
        await until(lambda: sandbox.stats().in_use == 1, "it runs")
        await sandbox.use(package_set(tmp_path, 8))
        assert Path(f"/proc/{old}").exists()
        assert sandbox.zygote_pid != old
        (first.path / "go").touch()
        assert (await running).result == 7
        await until(lambda: not Path(f"/proc/{old}").exists(), "the old zygote ends")
    finally:
        await sandbox.close()


async def test_a_closed_sandbox_takes_no_set(tmp_path: Path) -> None:
    sandbox = NativeSandbox(SandboxConfig(min_size=1, min_idle=1, max_size=1))
    await sandbox.start()
    await sandbox.close()
    with pytest.raises(SandboxUnavailable):
        await sandbox.use(package_set(tmp_path, 8))

"""The pool's size and members, on every driver."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sinas_server.backends.sandbox import Outcome, Sandbox
from sinas_server.backends.sandbox.config import SandboxConfig
from tests.backends.sandbox.conftest import held, package_set, task, until

ONE = "def handler(i, c): return 1"


@pytest.fixture
async def small(driver: Callable[[SandboxConfig], Sandbox], tmp_path: Path) -> AsyncIterator[Sandbox]:
    opened = driver(SandboxConfig(min_size=2, min_idle=1, max_size=4))
    await opened.start()
    await opened.use(package_set(tmp_path, 1))
    await until(lambda: opened.stats().idle == 2, "two wait")
    yield opened
    await opened.close()


def idle_names(sandbox: Sandbox) -> set[str]:
    return {member.name for member in sandbox.stats().idle_members}


async def end(running: asyncio.Task[Outcome], root: Path) -> object:
    """What the one that is `held` gives once it is let go."""
    (root / "set-1" / "go").touch()
    return (await running).result


async def test_stats(small: Sandbox, tmp_path: Path) -> None:
    running = asyncio.create_task(small.run(held()))
    await until(lambda: (small.stats().in_use, small.stats().idle) == (1, 1), "one runs and one waits")
    stats = small.stats()
    assert (stats.total, stats.max_size) == (2, 4)
    assert len({member.name for member in (*stats.idle_members, *stats.in_use_members)}) == 2
    assert 0 < stats.in_use_members[0].age_seconds < 120
    assert stats.idle_members[0].executions <= stats.max_executions
    assert await end(running, tmp_path) == 1


async def test_scaling_up_and_down_interrupts_nothing(small: Sandbox, tmp_path: Path) -> None:
    assert await small.scale(4) == 4
    assert await small.scale(99) == 4
    running = asyncio.create_task(small.run(held()))
    await until(lambda: small.stats().in_use == 1, "it runs")
    assert await small.scale(1) == 2  # the one that runs, and the least that must be idle
    assert await end(running, tmp_path) == 1
    await until(lambda: small.stats().total == 1, "one is left")
    assert await small.scale(3) == 3
    assert (await small.run(task(ONE))).result == 1
    await until(lambda: small.stats().total == 3, "there are three again")


async def test_reloading_makes_all_that_wait_anew(small: Sandbox, tmp_path: Path) -> None:
    await small.scale(3)
    running = asyncio.create_task(small.run(held()))
    await until(lambda: (small.stats().in_use, small.stats().idle) == (1, 2), "one runs and two wait")
    old = {member.name for member in small.stats().in_use_members} | idle_names(small)
    assert await small.reload() == 2
    assert not idle_names(small) & old
    assert await end(running, tmp_path) == 1
    await until(lambda: small.stats().idle == 3 and not idle_names(small) & old, "the one that ran is new as well")

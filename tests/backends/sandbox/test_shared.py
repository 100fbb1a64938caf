"""What the shared pool owes its process; what functions see of it is in `tests/functions/test_shared_pool.py`."""

import asyncio
import errno
import gc
import os
from pathlib import Path

import pytest

from sinas_server.backends.sandbox import PackageSet, SandboxUnavailable
from sinas_server.backends.sandbox.native.interpreter import Interpreter
from sinas_server.backends.sandbox.shared import SharedConfig, SharedPool
from sinas_server.backends.sandbox.shared.worker import SharedWorker, start_worker
from tests.backends.sandbox.conftest import task, until

ONE = "def handler(i, c): return 1"
SLEEPS = "import time\ndef handler(input_data, context):\n    time.sleep(30)\n"


async def test_a_canceled_task_leaves_no_error_that_nobody_takes() -> None:
    """Its worker is killed while the thread still runs; the event loop's handler of lost errors hears nothing."""
    heard: list[object] = []
    loop = asyncio.get_running_loop()
    usual = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    pool = SharedPool(SharedConfig(count=1))
    running = asyncio.create_task(pool.run(task(SLEEPS)))
    await until(lambda: any(worker.running for worker in pool.workers()), "the task has its worker")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await pool.close()
    gc.collect()
    loop.set_exception_handler(usual)
    assert heard == []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Workers with the packages "first" start once it is set."""
    opened = asyncio.Event()

    async def start(config: SharedConfig, interpreter: Interpreter) -> SharedWorker:
        if config.package_hash == "first":
            await opened.wait()
        return await start_worker(config, interpreter)

    monkeypatch.setattr("sinas_server.backends.sandbox.shared.pool.start_worker", start)
    return opened


async def test_fewer_wanted_while_workers_start_are_fewer_in_the_end(gate: asyncio.Event) -> None:
    """A function worker that believed to be the only one learns of another while it starts workers for both."""
    pool = SharedPool(SharedConfig(count=3, package_hash="first"))
    pool.warm()
    await pool.scale(1)
    gate.set()
    seen: set[int] = set()
    while len(seen) < 3:
        seen.update(worker.pid for worker in pool.workers())
        await asyncio.sleep(0)
    assert sum(not worker.draining for worker in pool.workers()) == 1
    await pool.close()


async def test_a_worker_that_starts_while_other_packages_come_into_use_is_replaced(
    gate: asyncio.Event, tmp_path: Path
) -> None:
    pool = SharedPool(SharedConfig(count=2, package_hash="first"))
    pool.warm()
    await pool.use(PackageSet("other", tmp_path))
    gate.set()
    await until(lambda: sum(not worker.draining for worker in pool.workers()) == 2, "there are as many as wanted")
    await until(lambda: pool.packages_in_use() == {"other"}, "those with the first packages have gone")
    assert sum(not worker.draining for worker in pool.workers()) == 2
    await pool.close()


async def test_a_task_gets_another_worker_if_the_one_that_was_started_for_it_dies_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where none is wanted: then nothing else would start one."""
    dying = iter([True])

    async def start(config: SharedConfig, interpreter: Interpreter) -> SharedWorker:
        worker = await start_worker(config, interpreter)
        if next(dying, False):
            asyncio.get_running_loop().call_soon(worker.kill)  # before the task hears that it is there
        return worker

    monkeypatch.setattr("sinas_server.backends.sandbox.shared.pool.start_worker", start)
    pool = SharedPool(SharedConfig(count=0))
    async with asyncio.timeout(60):
        assert (await pool.run(task(ONE))).result == 1
    await pool.close()


async def test_where_none_is_wanted_none_is_left_of_trying_packages(tmp_path: Path) -> None:
    pool = SharedPool(SharedConfig(count=0))
    pool.warm()
    await pool.use(PackageSet("other", tmp_path))
    assert [worker for worker in pool.workers() if not worker.draining] == []
    assert (await pool.run(task(ONE))).result == 1
    await pool.close()


async def test_what_a_full_disk_prevents_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pool = SharedPool(SharedConfig(count=0))
    monkeypatch.setattr("sinas_server.backends.sandbox.shared.worker.tempfile.mkdtemp", full)
    async with asyncio.timeout(60):
        with pytest.raises(SandboxUnavailable, match=r"did not start: .*No space left"):
            await pool.run(task(ONE))
    await pool.close()

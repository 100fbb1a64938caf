"""What the shared pool owes its process; what functions see of it is in `tests/functions/test_shared_pool.py`."""

import asyncio
import gc

import pytest

from sinas_server.backends.sandbox.shared import SharedConfig, SharedPool
from tests.backends.sandbox.conftest import task, until

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

"""Waiting for somebody to wait for what another transaction holds."""

import asyncio
from typing import Any

from sqlalchemy import text

from sinas_server.kernel.runtime import Runtime

WAITING = text("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


async def waits_or_ends(runtime: Runtime, task: "asyncio.Task[Any]") -> None:
    """Until a transaction waits for another one, or the task has ended without."""
    async with asyncio.timeout(60):
        while not (task.done() or await runtime.database.read(WAITING)):
            await asyncio.sleep(0.01)

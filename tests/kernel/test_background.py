"""Loops and tasks: what the scheduler does beside the queues."""

import asyncio
import dataclasses
from typing import Any

import pytest
from sqlalchemy import select, text

from sinas_server.kernel.job import Worker
from sinas_server.kernel.loop import Loop, run_loops
from sinas_server.kernel.outbox import MAX_ATTEMPTS, TASK_JOB, enqueue
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import TaskRow

PATIENCE = 40.0


async def test_a_step_that_fails_does_not_end_its_loop(runtime: Runtime) -> None:
    steps = {"good": 0, "bad": 0}

    async def good(_: Runtime) -> None:
        steps["good"] += 1

    async def bad(_: Runtime) -> None:
        steps["bad"] += 1
        raise ZeroDivisionError

    task = asyncio.create_task(run_loops(runtime, [Loop("good", 0.01, good), Loop("bad", 0.01, bad)]))
    async with asyncio.timeout(PATIENCE):
        while min(steps.values()) < 3:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _status(runtime: Runtime) -> list[tuple[str, int, str | None]]:
    rows = await runtime.database.rows(select(TaskRow.status, TaskRow.attempt, TaskRow.error))
    return [(row.status, row.attempt, row.error) for row in rows]


async def test_a_task_runs_after_its_transaction_and_is_tried_again(runtime: Runtime) -> None:
    seen: list[dict[str, Any]] = []

    async def handler(_: Runtime, payload: dict[str, Any]) -> None:
        seen.append(payload)
        if len(seen) < 2:
            raise OSError("the mail server is away")

    async def wait_for(status: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while [row[0] for row in await _status(runtime)] != [status]:
                await asyncio.sleep(0.02)

    made = dataclasses.replace(runtime, tasks={"test.task": handler})
    with pytest.raises(ZeroDivisionError):
        async with made.database.unit() as db:
            await enqueue(db, made, "test.task", {"never": True})
            raise ZeroDivisionError
    worker = asyncio.create_task(Worker(made, TASK_JOB, 2).run())
    async with made.database.unit() as db:
        await enqueue(db, made, "test.task", {"to": "a@example.com"})
    await wait_for("COMPLETED")
    assert seen == [{"to": "a@example.com"}] * 2

    async def hopeless(_: Runtime, payload: dict[str, Any]) -> None:
        raise OSError("gone for ever")

    made.tasks["test.task"] = hopeless  # type: ignore[index]  # a dictionary of this test
    await made.database.rows(text("UPDATE tasks SET status = 'PENDING', attempt = :most"), {"most": MAX_ATTEMPTS - 1})
    await wait_for("FAILED")
    status, attempt, error = (await _status(runtime))[0]
    assert (status, attempt) == ("FAILED", MAX_ATTEMPTS)
    assert error is not None
    assert "gone for ever" in error
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)

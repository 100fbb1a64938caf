"""Loops and tasks: what the scheduler does beside the queues."""

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from sinas_server.kernel.job import Worker
from sinas_server.kernel.loop import Loop, run_loops
from sinas_server.kernel.outbox import MAX_ATTEMPTS, TASK_JOB, enqueue
from sinas_server.kernel.purge import purge_tasks
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import TaskRow
from sinas_server.kit.clock import now

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


async def test_tasks_are_forgotten_when_they_are_done_or_long_failed(runtime: Runtime) -> None:
    old, recent = now() - timedelta(days=15), now() - timedelta(hours=23)
    for status, created, finished in (
        ("COMPLETED", old, old),
        ("FAILED", old, None),
        ("COMPLETED", old, recent),
        ("FAILED", recent, None),
        ("PENDING", old, None),
    ):
        values = {"name": status, "payload": {}, "status": status, "created_at": created, "finished_at": finished}
        await runtime.database.rows(insert(TaskRow).values(**values))
    await purge_tasks(runtime)
    left = [row[0] for row in await _status(runtime)]
    assert sorted(left) == ["COMPLETED", "FAILED", "PENDING"]

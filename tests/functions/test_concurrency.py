"""A function's limit of executions at a time, over all workers, without others having to wait for it."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sinas_server.functions import concurrency, jobs
from sinas_server.functions.concurrency import ADMIT_LOOP
from sinas_server.functions.tables import QUEUE, ExecutionRow, Status
from sinas_server.kernel.job import Claim, Job, Worker
from sinas_server.kernel.runtime import Runtime
from tests.functions.conftest import Declare, queue, run, until
from tests.people import Person

PATIENCE = 60


class Running:
    """Stands in for the sandbox, which is not what this is about: executions run until they are let go."""

    def __init__(self) -> None:
        self.now: list[str] = []
        self.most: dict[str, int] = {}
        self.go = asyncio.Event()
        self.ended = 0

    async def run(self, runtime: Runtime, claim: Claim[ExecutionRow]) -> None:
        name = claim.row.name
        self.now.append(name)
        self.most[name] = max(self.most.get(name, 0), self.now.count(name))
        try:
            await self.go.wait()
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)  # to kill it takes a moment
            self.now.remove(name)
            await jobs.leave_room(runtime, claim.row)
            raise
        self.now.remove(name)
        await jobs._finish(runtime, claim.row, jobs.End(output=1))
        self.ended += 1


@asynccontextmanager
async def workers(runtime: Runtime, running: Running, count: int = 3) -> AsyncIterator[None]:
    async def fail(runtime: Runtime, claim: Claim[ExecutionRow], error: str) -> None:
        raise AssertionError(error)

    tasks = [
        asyncio.create_task(
            Worker(
                dataclasses.replace(runtime, worker_name=f"w{number}"), Job(QUEUE, ExecutionRow, running.run, fail), 8
            ).run()
        )
        for number in range(count)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_never_more_than_the_limit_and_all_of_them_end(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("limited", max_concurrency=2)
    running = Running()
    async with workers(runtime, running), asyncio.timeout(PATIENCE):
        await asyncio.gather(*(queue(user, "limited") for _ in range(30)))
        while len(running.now) < 2:
            await asyncio.sleep(0.01)
        running.go.set()
        while running.ended < 30:
            await asyncio.sleep(0.01)
    assert running.most == {"limited": 2}


async def test_others_do_not_wait_for_it(runtime: Runtime, user: Person, declare: Declare) -> None:
    """More wait for their turn than all workers have slots, and were there first."""
    await declare("limited", max_concurrency=1)
    await declare("free")
    for _ in range(40):
        await queue(user, "limited")
    free = [await queue(user, "free") for _ in range(20)]
    running = Running()
    async with workers(runtime, running), asyncio.timeout(PATIENCE):
        while running.now.count("free") < len(free):
            await asyncio.sleep(0.01)
        assert running.now.count("limited") == 1


async def test_what_is_cancelled_makes_room(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("limited", max_concurrency=1)
    running = Running()
    async with workers(runtime, running), asyncio.timeout(PATIENCE):
        first, second = await queue(user, "limited"), await queue(user, "limited")
        while not running.now:
            await asyncio.sleep(0.01)
        await user.http.post(f"/executions/{first}/cancel")
        while (await user.http.get(f"/executions/{second}")).json()["status"] != "RUNNING":
            await asyncio.sleep(0.01)
    assert running.most == {"limited": 1}


async def test_the_loop_admits_what_is_due_and_what_was_missed(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("limited", max_concurrency=1)
    body = {"input": {}, "delay_seconds": 3600}
    delayed = [
        (await user.http.post("/functions/default/limited/execute/async", json=body)).json()["execution_id"]
        for _ in range(2)
    ]
    held = select(func.count()).where(ExecutionRow.held)
    await ADMIT_LOOP.step(runtime)
    assert (await runtime.database.rows(held))[0][0] == 2
    await runtime.database.rows(update(ExecutionRow).values(run_at=func.now()))
    await ADMIT_LOOP.step(runtime)
    assert (await runtime.database.rows(held))[0][0] == 1
    ended = update(ExecutionRow).where(~ExecutionRow.held).values(status=Status.COMPLETED)
    await runtime.database.rows(ended)  # by a worker that died before it could admit the next
    await ADMIT_LOOP.step(runtime)
    assert (await runtime.database.rows(held))[0][0] == 0
    assert len(delayed) == 2


async def test_a_limit_that_is_lifted_frees_all(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("limited", max_concurrency=1)
    for _ in range(5):
        await queue(user, "limited")
    held = select(func.count()).where(ExecutionRow.held)
    assert (await runtime.database.rows(held))[0][0] == 4
    await user.http.put("/api/v1/functions/default/limited", json={"max_concurrency": 3})
    await ADMIT_LOOP.step(runtime)
    assert (await runtime.database.rows(held))[0][0] == 2
    await user.http.put("/api/v1/functions/default/limited", json={"max_concurrency": None})
    await ADMIT_LOOP.step(runtime)
    assert (await runtime.database.rows(held))[0][0] == 0


async def test_what_cannot_be_admitted_at_once_was_asked_for_all_the_same(
    runtime: Runtime, user: Person, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is told that it was not asks again, and has it run twice."""

    async def busy(runtime: Runtime, function_id: UUID) -> None:
        raise PoolTimeoutError("no connection is free")

    await declare("limited", max_concurrency=1)
    with monkeypatch.context() as patch:
        patch.setattr(concurrency, "_admit", busy)
        execution_id = await queue(user, "limited")
        cancelled = await user.http.post(f"/executions/{await queue(user, 'limited')}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "CANCELLED")
    await ADMIT_LOOP.step(runtime)
    [row] = await runtime.database.rows(select(ExecutionRow.id).where(~ExecutionRow.held))
    assert str(row.id) == execution_id


async def test_one_that_waits_for_a_person_does_not_count_and_goes_on_at_once(
    admin: Person, share: Declare, worker: Worker[Any], tmp_path: Path
) -> None:
    code = (
        "import os, time\n"
        "def handler(input_data, context):\n"
        "    if 'ask' in input_data:\n        return input(input_data['ask'])\n"
        "    while not os.path.exists(input_data['until']):\n        time.sleep(0.01)\n"
    )
    await share("limited", code, max_concurrency=1)
    go = tmp_path / "go"
    async with asyncio.timeout(PATIENCE):
        asking = (await run(admin, "limited", {"ask": "Well?"}))["execution_id"]
        running = await queue(admin, "limited", {"until": str(go)})
        await until(admin, running, "RUNNING")  # since the first does not count
        waiting = await queue(admin, "limited", {"until": str(go)})
        answer = await admin.http.post(f"/executions/{asking}/continue", json={"input": "yes"}, timeout=PATIENCE)
        assert (answer.json()["status"], answer.json()["output_data"]) == ("COMPLETED", "yes"), answer.text
        shown = [(await admin.http.get(f"/executions/{one}")).json()["status"] for one in (running, waiting)]
        assert shown == ["RUNNING", "PENDING"]
        go.touch()
        for one in (running, waiting):
            await until(admin, one, "COMPLETED")


@pytest.mark.parametrize("limit", [0, -1, 10_001, "x", 1.5])
async def test_bad_limits_are_refused(user: Person, limit: object) -> None:
    body = {"name": "f", "code": "def handler(i, c):\n    return 1\n", "max_concurrency": limit}
    answer = await user.http.post("/api/v1/functions", json=body)
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "max_concurrency"])

"""The queues as an administrator sees and steers them."""

import asyncio
import os
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update

from sinas_server.backends.embedded.process import descendants
from sinas_server.backends.sandbox.native.sandbox import NativeSandbox
from sinas_server.chats.start import Asked, say_now
from sinas_server.chats.tables import ChatRow, TurnRow
from sinas_server.functions.tables import ExecutionRow
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel.heartbeat import LIFE_SECONDS, Load, PoolStats, beating, read_heartbeats
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow
from sinas_server.kit.clock import now
from sinas_server.settings import Settings
from tests.functions.conftest import ECHO, Declare, Json, declare, port, queue, until, worker, working
from tests.functions.test_executions import record
from tests.functions.test_recovery import SLEEP
from tests.people import Person

__all__ = ["declare", "port", "worker"]
FAILS = "def handler(input_data, context):\n    raise ValueError('no')\n"
PATHS = ("stats", "jobs", "workers", "dlq")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_retry_delay": 0.0, "queue_max_retries": 2})


async def get(person: Person, path: str) -> list[Json]:
    answer = await person.http.get(f"/api/v1/queue/{path}")
    assert answer.status_code == 200, answer.text
    return cast(list[Json], answer.json())


async def get_stats(person: Person) -> Json:
    return cast(Json, (await person.http.get("/api/v1/queue/stats")).json())


async def audited(runtime: Runtime) -> list[tuple[str, str]]:
    rows = await runtime.database.rows(select(AuditRow.action, AuditRow.target_kind).order_by(AuditRow.id))
    return [(row.action, row.target_kind) for row in rows]


async def waiting_turn(runtime: Runtime, person: Person) -> dict[str, str]:
    """A turn that waits for a worker, as there is none here: its id and its chat's."""
    name = f"a{uuid4().hex[:8]}"
    await person.http.post("/api/v1/agents", json={"name": name})
    chat = (await person.http.post(f"/agents/default/{name}/chats", json={})).json()
    caller = await act_for(runtime, Principal(person.id), "session")
    started = await say_now(runtime, caller, UUID(chat["id"]), Asked("hello"))
    return {"chat_id": chat["id"], "job_id": str(started.turn_id), "agent": f"default/{name}"}


async def test_only_administrators(user: Person) -> None:
    for path in PATHS:
        assert (await user.http.get(f"/api/v1/queue/{path}")).status_code == 403
    for path in ("queue/dlq/flush", f"queue/dlq/{uuid4()}/retry", f"queue/jobs/{uuid4()}/cancel"):
        assert (await user.http.post(f"/api/v1/{path}")).status_code == 403
    assert (await user.http.post("/api/v1/system/flush-stuck-jobs")).status_code == 403


async def test_an_exhausted_execution_is_a_dead_letter_until_it_is_retried(
    runtime: Runtime, admin: Person, user: Person, declare: Declare, worker: Worker[ExecutionRow]
) -> None:
    await declare("fails", FAILS)
    job_id = await queue(user, "fails", {"a": 1})
    await until(user, job_id, "FAILED")
    [letter] = await get(admin, "dlq")
    assert (letter["job_id"], letter["function"], letter["attempts"]) == (job_id, "default/fails", 3)
    assert letter["error"] == "ValueError: no"
    assert letter["enqueued_at"] <= letter["failed_at"] <= time.time() + 60
    assert (await get_stats(admin))["dlq"] == {"size": 1}

    await user.http.put("/api/v1/functions/default/fails", json={"code": ECHO})
    answer = await admin.http.post(f"/api/v1/queue/dlq/{job_id}/retry")
    assert (answer.status_code, answer.json()) == (200, {"status": "queued", "job_id": job_id})
    row = await until(user, job_id, "COMPLETED")
    assert (row["output_data"], row["error"], row["attempt"]) == ({"a": 1}, None, 4)
    assert await get(admin, "dlq") == []
    assert ("retry", "execution") in await audited(runtime)
    again = await admin.http.post(f"/api/v1/queue/dlq/{job_id}/retry")
    assert again.status_code == 409


async def test_a_retried_dead_letter_has_as_many_attempts_as_a_new_one(
    admin: Person, user: Person, declare: Declare, worker: Worker[ExecutionRow]
) -> None:
    await declare("fails", FAILS)
    job_id = await queue(user, "fails")
    await until(user, job_id, "FAILED")
    await admin.http.post(f"/api/v1/queue/dlq/{job_id}/retry")
    while (await get(admin, "dlq")) == []:
        await asyncio.sleep(0.02)
    assert [letter["attempts"] for letter in await get(admin, "dlq")] == [6]


async def test_a_failure_somebody_is_told_of_is_no_dead_letter(
    admin: Person, user: Person, declare: Declare, worker: Worker[ExecutionRow]
) -> None:
    await declare("fails", FAILS)
    answer = await user.http.post("/functions/default/fails/execute", json={})
    assert answer.json()["status"] == "error"
    assert await get(admin, "dlq") == []
    retry = await admin.http.post(f"/api/v1/queue/dlq/{answer.json()['execution_id']}/retry")
    assert retry.status_code == 409
    assert (await admin.http.post(f"/api/v1/queue/dlq/{uuid4()}/retry")).status_code == 404


async def test_flushing_keeps_the_history(runtime: Runtime, admin: Person, user: Person) -> None:
    dead = [await record(runtime, user, status="FAILED", dead_at=func.now()) for _ in range(3)]
    assert len(await get(admin, "dlq?limit=2")) == 2
    assert len(await get(admin, "dlq?skip=2")) == 1
    answer = await admin.http.post("/api/v1/queue/dlq/flush")
    assert (answer.status_code, answer.json()) == (200, {"status": "flushed", "count": 3})
    assert await get(admin, "dlq") == []
    assert (await user.http.get(f"/executions/{dead[0]}")).json()["status"] == "FAILED"
    assert ("flush", "dead_letters") in await audited(runtime)


async def test_a_turn_that_waits_for_its_tools_is_running_however_old_it_is(runtime: Runtime, admin: Person) -> None:
    """It holds no worker meanwhile, but its work is not over."""
    turn_id = (await waiting_turn(runtime, admin))["job_id"]
    since = now() - timedelta(days=3)
    await runtime.database.rows(update(TurnRow).values(status="WAITING", created_at=since))
    assert (await get_stats(admin))["jobs"]["running"] == 1
    assert [job["job_id"] for job in await get(admin, "jobs?status=running")] == [turn_id]
    await runtime.database.rows(update(TurnRow).values(status="SUSPENDED", created_at=now()))
    counts = (await get_stats(admin))["jobs"]
    assert (counts["running"], counts["awaiting_input"]) == (0, 1)
    assert [job["job_id"] for job in await get(admin, "jobs?status=awaiting_input")] == [turn_id]


async def test_jobs_are_executions_and_turns(runtime: Runtime, admin: Person, user: Person, declare: Declare) -> None:
    await declare("f")
    execution = await queue(user, "f")
    asked = await waiting_turn(runtime, admin)
    turn, job = await get(admin, "jobs")
    assert (job["job_id"], job["queue"], job["type"], job["function"]) == (
        execution,
        "functions",
        "function",
        "default/f",
    )
    assert (job["status"], job["trigger_type"], job["agent"], job["attempts"]) == ("queued", "API", None, 0)
    assert (turn["queue"], turn["type"], turn["function"]) == ("agents", "agent", None)
    assert turn.items() >= asked.items()
    assert abs(job["enqueued_at"] - time.time()) < 600
    assert {one["job_id"] for one in await get(admin, "jobs?status=QUEUED")} == {execution, turn["job_id"]}
    assert len(await get(admin, "jobs?limit=1")) == 1
    assert await get(admin, "jobs?status=running") == []
    stats = await get_stats(admin)
    assert stats["queues"] == {"functions": {"pending": 1}, "agents": {"pending": 1}}
    assert stats["jobs"] == {
        "queued": 2,
        **dict.fromkeys(("running", "awaiting_input", "completed", "failed", "cancelled"), 0),
    }
    for path in ("jobs?status=x", "jobs?limit=0", "jobs?limit=501", "dlq?skip=-1"):
        assert (await admin.http.get(f"/api/v1/queue/{path}")).status_code == 422, path


async def test_ended_jobs_count_for_a_day(runtime: Runtime, admin: Person, user: Person) -> None:
    for status in ("COMPLETED", "COMPLETED", "FAILED", "CANCELLED", "AWAITING_INPUT", "RUNNING"):
        await record(runtime, user, status=status)
    await record(runtime, user, created_at=func.now() - timedelta(hours=25))
    assert (await get_stats(admin))["jobs"] == {
        "queued": 0,
        "completed": 2,
        **dict.fromkeys(("running", "awaiting_input", "failed", "cancelled"), 1),
    }


async def test_canceling_what_waits(runtime: Runtime, admin: Person, user: Person, declare: Declare) -> None:
    await declare("f")
    execution = await queue(user, "f")
    answer = await admin.http.post(f"/api/v1/queue/jobs/{execution}/cancel")
    assert (answer.status_code, answer.json()) == (200, {"status": "cancelled", "job_id": execution})
    turn_id = (await waiting_turn(runtime, admin))["job_id"]
    answer = await admin.http.post(f"/api/v1/queue/jobs/{turn_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    [turn] = await runtime.database.rows(select(TurnRow.status, TurnRow.finished_at))
    assert (turn.status, turn.finished_at is None) == ("CANCELLED", False)
    for job_id in (execution, turn_id):
        assert (await admin.http.post(f"/api/v1/queue/jobs/{job_id}/cancel")).status_code == 409
    assert (await admin.http.post(f"/api/v1/queue/jobs/{uuid4()}/cancel")).status_code == 404
    assert (await admin.http.post("/api/v1/queue/jobs/x/cancel")).status_code == 422
    async with working(runtime):
        await asyncio.sleep(1.5)  # a worker that looks for work finds none
    assert (await user.http.get(f"/executions/{execution}")).json()["attempt"] == 0


def busy_below(pid: int) -> set[int]:
    """The processes below this one that have used half a second of CPU time."""
    found = set()
    for below in descendants(pid):
        with suppress(OSError):
            user_ticks = int(Path(f"/proc/{below}/stat").read_text().rpartition(")")[2].split()[11])
            if user_ticks > 0.5 * os.sysconf("SC_CLK_TCK"):
                found.add(below)
    return found


async def test_canceling_kills_what_runs(
    admin: Person, user: Person, declare: Declare, worker: Worker[ExecutionRow]
) -> None:
    await declare("spins", "def handler(input_data, context):\n    while True:\n        pass\n")
    execution = await queue(user, "spins")
    sandbox = worker.runtime.sandbox
    assert isinstance(sandbox, NativeSandbox)
    async with asyncio.timeout(60):
        while not (spinning := busy_below(sandbox.zygote_pid)):
            await asyncio.sleep(0.02)
    assert (await admin.http.post(f"/api/v1/queue/jobs/{execution}/cancel")).status_code == 200
    async with asyncio.timeout(60):
        while worker.running or any(Path(f"/proc/{pid}").exists() for pid in spinning):
            await asyncio.sleep(0.02)
    row = (await user.http.get(f"/executions/{execution}")).json()
    assert (row["status"], row["attempt"]) == ("CANCELLED", 1)


async def test_a_turn_is_stopped_while_its_worker_writes(runtime: Runtime, admin: Person) -> None:
    turn_id = (await waiting_turn(runtime, admin))["job_id"]
    await runtime.database.rows(update(TurnRow).values(status="RUNNING"))
    blocked = text("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
    async with runtime.database.unit() as db:  # a step of the worker locks the turn, and then its chat
        await db.execute(select(TurnRow.id).where(TurnRow.id == UUID(turn_id)).with_for_update())
        stopping = asyncio.create_task(admin.http.post(f"/api/v1/queue/jobs/{turn_id}/cancel"))
        while not await runtime.database.rows(blocked):
            await asyncio.sleep(0.01)
        await db.execute(update(ChatRow).values(title="Renamed"))
    assert (await stopping).status_code == 200
    [turn] = await runtime.database.rows(select(TurnRow.status))
    assert turn.status == "CANCELLED"


async def test_stuck_jobs_are_those_running_for_two_hours(
    runtime: Runtime, admin: Person, user: Person, declare: Declare
) -> None:
    old, recent = func.now() - timedelta(minutes=121), func.now() - timedelta(minutes=119)
    stuck = await record(runtime, user, status="RUNNING", started_at=old)
    never_begun = await record(runtime, user, status="RUNNING", run_at=old)
    await record(runtime, user, status="RUNNING", started_at=recent, run_at=old)
    await record(runtime, user, status="PENDING", run_at=old)
    await waiting_turn(runtime, admin)
    await runtime.database.rows(update(TurnRow).values(status="RUNNING", run_at=old))
    answer = await admin.http.post("/api/v1/system/flush-stuck-jobs")
    assert (answer.status_code, answer.json()) == (200, {"cancelled": 3})
    query = select(ExecutionRow.id).where(ExecutionRow.status == "CANCELLED")
    assert {row.id for row in await runtime.database.rows(query)} == {UUID(stuck), UUID(never_begun)}
    assert (await admin.http.post("/api/v1/system/flush-stuck-jobs")).json() == {"cancelled": 0}


async def test_workers_are_those_that_give_signs_of_life(runtime: Runtime, admin: Person) -> None:
    assert await get(admin, "workers") == []
    load = Load(slots=10, running=3, pool=PoolStats(idle=2, in_use=3, max_size=20))
    async with beating(runtime, "functions", lambda: load):
        while not (workers := await get(admin, "workers")):
            await asyncio.sleep(0.01)
        [worker] = workers
        assert (worker["queue"], worker["max_jobs"], worker["running"]) == ("functions", 10, 3)
        assert (worker["name"], worker["pid"], worker["pool"]["idle"]) == ("test", os.getpid(), 2)
        assert 0 < await runtime.redis.ttl("sinas:heartbeat:test") <= LIFE_SECONDS
        stats = await get_stats(admin)
        assert stats["pool"] == {"idle": 2, "in_use": 3, "total": 5, "max_size": 20}
        assert stats["workers"] == {"functions": 1, "agents": 0, "tasks": 0}
    assert await get(admin, "workers") == []
    async with beating(runtime, "api"):
        while not await read_heartbeats(runtime):
            await asyncio.sleep(0.01)
        assert await get(admin, "workers") == []


async def test_signs_of_life_that_nobody_understands_are_passed_over(runtime: Runtime, admin: Person) -> None:
    async with beating(runtime, "agents"):
        while not await read_heartbeats(runtime):
            await asyncio.sleep(0.01)
        await runtime.redis.set("sinas:heartbeat:test", b'{"name": 1}', ex=LIFE_SECONDS)
        assert await get(admin, "workers") == []


async def test_canceling_sleepers_frees_their_slots(
    admin: Person, user: Person, declare: Declare, worker: Worker[ExecutionRow]
) -> None:
    await declare("sleeps", SLEEP)
    await declare("f")
    sleepers = [await queue(user, "sleeps", {"seconds": 600}) for _ in range(worker.slots)]
    for sleeper in sleepers:
        await until(user, sleeper, "RUNNING")
    waits = await queue(user, "f")
    for sleeper in sleepers:
        await admin.http.post(f"/api/v1/queue/jobs/{sleeper}/cancel")
    await until(user, waits, "COMPLETED")

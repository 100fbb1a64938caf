"""What becomes of executions when their code fails, or their worker, or the database."""

import asyncio
import dataclasses
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import func, select, update

from sinas_server.backends.sandbox import Ending, OnOutput, Outcome, Task
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from sinas_server.functions import execute
from sinas_server.functions.execute import Order
from sinas_server.functions.jobs import EXECUTION_JOB, MAX_LOST
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.tables import ExecutionRow, Trigger
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.identity.tables import ExecutionGrantRow
from sinas_server.kernel import store
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import CallIdentity
from sinas_server.settings import Settings
from tests.functions.conftest import Declare, queue, until, working
from tests.functions.test_logs import PRINTS
from tests.people import Person

SLEEP = "import time\ndef handler(input_data, context):\n    time.sleep(input_data['seconds'])\n    return 'slept'\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_retry_delay": 0.0, "queue_max_retries": 2})


async def lose(runtime: Runtime, execution_id: str, **values: object) -> None:
    """Leave the execution as a worker does that was killed while running it."""
    lost = {"status": "RUNNING", "attempt": 1, "worker": "gone", "lease_until": func.now(), "started_at": func.now()}
    statement = update(ExecutionRow).where(ExecutionRow.id == UUID(execution_id)).values(**lost | values)
    await runtime.database.rows(statement)


async def test_asynchronous_failures_are_tried_again_and_then_left(
    user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("fails", "def handler(input_data, context):\n    raise ValueError('no')\n")
    row = await until(user, await queue(user, "fails"), "FAILED")
    assert (row["attempt"], row["error"]) == (3, "ValueError: no")


async def test_a_later_attempt_may_succeed_and_leaves_no_trace_of_the_error(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("f")
    execution_id = await queue(user, "f", {"a": 1})
    failed = {"failures": 1, "attempt": 1, "error": "x", "traceback": "x", "cause": "error", "status": "PENDING"}
    await lose(runtime, execution_id, **failed, started_at=None)
    async with working(runtime):
        row = await until(user, execution_id, "COMPLETED")
    assert (row["attempt"], row["error"], row["traceback"], row["cause"]) == (2, None, None, None)


async def test_synchronous_failures_are_final(user: Person, declare: Declare, worker: Worker[Any]) -> None:
    await declare("fails", "def handler(input_data, context):\n    raise ValueError('no')\n")
    answer = await user.http.post("/functions/default/fails/execute", json={})
    row = (await user.http.get(f"/executions/{answer.json()['execution_id']}")).json()
    assert (row["status"], row["attempt"]) == ("FAILED", 1)


@pytest.mark.parametrize(
    ("trigger", "idempotent", "started", "ends"),
    [
        ("API", False, True, "COMPLETED"),
        ("SCHEDULE", False, True, "COMPLETED"),
        ("HOOK", False, True, "COMPLETED"),
        ("AGENT", True, True, "COMPLETED"),
        ("AGENT", False, False, "COMPLETED"),  # its code had not been started
        ("AGENT", False, True, "FAILED"),
    ],
)
async def test_what_a_lost_worker_ran_is_run_again_where_that_is_safe(
    runtime: Runtime, user: Person, declare: Declare, trigger: str, idempotent: bool, started: bool, ends: str
) -> None:
    await declare("f", idempotent=idempotent)
    execution_id = await queue(user, "f")
    await lose(runtime, execution_id, trigger_type=trigger, **({} if started else {"started_at": None}))
    async with working(runtime):
        row = await until(user, execution_id, ends)
    if ends == "FAILED":
        assert row["cause"] == "interrupted"
        assert row["error"].startswith("interrupted, outcome unknown")
        assert row["attempt"] == 2


async def test_what_kills_its_workers_is_given_up(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    killer, unlucky = await queue(user, "f"), await queue(user, "f")
    await lose(runtime, killer, attempt=MAX_LOST + 1)
    await lose(runtime, unlucky, attempt=MAX_LOST)
    async with working(runtime):
        assert "6 workers were lost" in (await until(user, killer, "FAILED"))["error"]
        await until(user, unlucky, "COMPLETED")


async def test_a_stopping_worker_hands_over(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("sleeps", SLEEP)
    execution_id = await queue(user, "sleeps", {"seconds": 600})
    async with working(runtime):
        await until(user, execution_id, "RUNNING")
    await runtime.database.rows(update(ExecutionRow).values(input_data={"seconds": 0}))
    async with working(runtime, "another"):
        row = await until(user, execution_id, "COMPLETED")
    assert (row["attempt"], row["output_data"]) == (2, "slept")


async def test_a_result_survives_the_loss_of_every_connection(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("sleeps", SLEEP)
    waiting = asyncio.create_task(
        user.http.post("/functions/default/sleeps/execute", json={"input": {"seconds": 1}}, timeout=60)
    )
    while not worker.running:
        await asyncio.sleep(0.01)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sinas'"
    address = runtime.settings.sqlalchemy_url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(address, autocommit=True) as killer:
        for _ in range(15):
            await killer.execute(kill)
            await asyncio.sleep(0.1)
    answer = (await waiting).json()
    assert (answer["status"], answer["result"]) == ("success", "slept")
    [row] = await runtime.database.read(select(ExecutionRow))
    assert (row.attempt, row.status, str(row.id)) == (1, "COMPLETED", answer["execution_id"])


async def test_a_lost_wake_up_only_delays(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("f")
    for _ in range(3):
        execution_id = await queue(user, "f")
        await runtime.redis.flushdb()
        await until(user, execution_id, "COMPLETED")


async def test_no_token_outlives_its_execution(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("fails", "1 / 0")
    await declare("sleeps", SLEEP)
    grants = select(ExecutionGrantRow.execution_id)
    async with working(runtime):
        await until(user, await queue(user, "fails"), "FAILED")
        assert await runtime.database.rows(grants) == []
        execution_id = await queue(user, "sleeps", {"seconds": 60})
        await until(user, execution_id, "RUNNING")
        while not await runtime.database.rows(grants):
            await asyncio.sleep(0.01)
        await user.http.post(f"/executions/{execution_id}/cancel")
        assert await runtime.database.rows(grants) == []


async def test_a_deleted_function_does_not_run(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    execution_id = await queue(user, "f")
    await user.http.delete("/api/v1/functions/default/f")
    async with working(runtime):
        row = await until(user, execution_id, "FAILED")
    assert row["error"] == "Function 'default/f' was deleted"


async def test_the_code_that_runs_is_that_of_the_start(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f", "def handler(input_data, context):\n    return 1\n")
    execution_id = await queue(user, "f")
    code = "def handler(input_data, context):\n    return 2\n"
    await user.http.put("/api/v1/functions/default/f", json={"code": code})
    async with working(runtime):
        row = await until(user, execution_id, "COMPLETED")
    assert (row["output_data"], row["function_version"]) == (2, 2)


async def test_a_mistake_of_ours_ends_the_execution(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    execution_id = await queue(user, "f")

    class Broken:
        async def run(self, *_: object) -> None:
            raise KeyError("secret detail")

    broken: Any = Broken()
    made = Worker(dataclasses.replace(runtime, sandbox=broken), EXECUTION_JOB, 1)
    task = asyncio.create_task(made.run())
    row = await until(user, execution_id, "FAILED")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (row["cause"], row["attempt"]) == ("internal", 3)
    assert "secret" not in row["error"]


async def test_without_a_sandbox_the_reason_is_told(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    execution_id = await queue(user, "f")
    task = asyncio.create_task(Worker(runtime, EXECUTION_JOB, 1).run())
    row = await until(user, execution_id, "FAILED")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "without a sandbox" in row["error"]


async def test_an_execution_belongs_to_the_transaction_that_asks_for_it(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("f")
    me = await act_for(runtime, Principal(user.id), "session")
    call = CallIdentity(uuid4(), uuid4(), 1, 0, "call_0")
    order = Order(trigger=Trigger.SCHEDULE, input={"a": 1}, waits=False, call=call)
    with pytest.raises(KeyError):
        async with runtime.database.unit() as db:
            function = await store.use(db, me, FUNCTION, "default", "f", "execute")
            await execute.start(db, runtime, me, function, order)
            raise KeyError
    assert await runtime.database.rows(select(ExecutionRow)) == []
    async with runtime.database.unit() as db:
        first = await execute.start(db, runtime, me, function, order)
        assert await execute.start(db, runtime, me, function, order) == first
    row = await execute.wait(runtime, first, 60)
    assert (row.status, row.output_data, row.trigger_type) == ("COMPLETED", {"a": 1}, "SCHEDULE")
    with pytest.raises(NotFoundError):
        await execute.wait(runtime, uuid4(), 1)


@pytest.mark.parametrize(
    ("setting", "own", "holds"),
    [("public", None, "public"), ("public", "none", "none"), ("list", "public", "list"), ("none", "list", "none")],
)
async def test_a_function_may_be_stricter_than_the_operator(
    runtime: Runtime, user: Person, declare: Declare, setting: str, own: str | None, holds: str
) -> None:
    await declare("f", egress=own)
    execution_id = await queue(user, "f")
    asked: list[Task] = []

    class Recorder:
        async def run(self, task: Task, on_output: OnOutput) -> Outcome:
            asked.append(task)
            return Outcome(Ending.OK)

    recorder: Any = Recorder()
    settings = runtime.settings.model_copy(update={"function_egress": setting})
    made = Worker(dataclasses.replace(runtime, sandbox=recorder, settings=settings), EXECUTION_JOB, 1)
    task = asyncio.create_task(made.run())
    await until(user, execution_id, "COMPLETED")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [task.egress for task in asked] == [holds]


async def test_who_finds_no_free_sandbox_waits_on(runtime: Runtime, user: Person, declare: Declare, port: int) -> None:
    """One sandbox for two callers, the second of whom waits longer than one worker waits for a sandbox."""
    await declare("waits", PRINTS)
    sandbox = open_sandbox(
        SandboxConfig(min_size=1, min_idle=0, max_size=1, acquire_timeout=0.3, platform=("127.0.0.1", port))
    )
    await sandbox.start()
    made = Worker(dataclasses.replace(runtime, sandbox=sandbox, worker_name="small"), EXECUTION_JOB, 2)
    task = asyncio.create_task(made.run())
    body = {"input": {"waits": True}}
    asking = asyncio.gather(
        *(user.http.post("/functions/default/waits/execute", json=body, timeout=90) for _ in range(2))
    )
    while not await runtime.database.rows(select(ExecutionRow.id).where(ExecutionRow.attempt > 1)):
        await asyncio.sleep(0.02)
    await declare("go")
    answers = await asking
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await sandbox.close()
    assert [answer.json()["status"] for answer in answers] == ["success", "success"]
    rows = await runtime.database.rows(select(ExecutionRow.attempt, ExecutionRow.failures, ExecutionRow.max_retries))
    assert {(row.attempt - row.failures, row.max_retries) for row in rows} == {(1, None)}
    assert await runtime.database.rows(select(ExecutionGrantRow.execution_id)) == []

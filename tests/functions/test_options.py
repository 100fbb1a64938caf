"""Executing later, only once, and with somebody told: the options of asynchronous executions, and running again."""

import asyncio
import base64
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import select, update

from sinas_server.backends.delivery import Message, signed_headers
from sinas_server.functions.callbacks import CALLBACK_LOOP, MAX_RESULT
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.job import Worker
from sinas_server.kernel.outbox import TASK_JOB
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import TaskRow
from sinas_server.settings import Settings
from tests.functions.conftest import Declare, Json, until
from tests.functions.receiver import Receiver, receiving
from tests.functions.test_executions import record
from tests.people import Person, make_person

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
PATH = "/functions/default/f/execute/async"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    callbacks = {"callback_allowed_hosts": ("127.0.0.1",), "callback_secret": SecretStr(SECRET)}
    return settings.model_copy(update={"queue_retry_delay": 0.0, "queue_max_retries": 1, **callbacks})


async def ask(person: Person, **body: object) -> str:
    answer = await person.http.post(PATH, json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["execution_id"])


async def count(runtime: Runtime) -> int:
    return len(await runtime.database.rows(select(ExecutionRow.id)))


async def test_the_same_key_means_the_same_execution(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    first = await ask(user, trigger_id="order-7", input={"a": 1, "b": 2})
    assert await ask(user, trigger_id="order-7", input={"b": 2, "a": 1}) == first
    assert await ask(user, trigger_id="order-8", input={"a": 1, "b": 2}) != first
    assert await ask(user, input={"a": 1, "b": 2}) != await ask(user, input={"a": 1, "b": 2})
    assert await ask(user, trigger_id="") != await ask(user, trigger_id="")
    assert await count(runtime) == 6


async def test_the_key_holds_after_the_end(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    first = await ask(user, trigger_id="k")
    await runtime.database.rows(update(ExecutionRow).values(status="COMPLETED"))
    assert await ask(user, trigger_id="k") == first


async def test_another_input_with_the_same_key_is_a_conflict(user: Person, declare: Declare) -> None:
    await declare("f")
    first = await ask(user, trigger_id="k", input={"a": 1})
    for other in ({"a": 2}, {"a": True}, {"a": 1, "b": None}, {}):
        answer = await user.http.post(PATH, json={"trigger_id": "k", "input": other})
        assert answer.status_code == 409, answer.text
        assert first in answer.json()["detail"]


async def test_a_key_is_of_one_user_and_one_function(
    runtime: Runtime, app: FastAPI, user: Person, admin: Person, declare: Declare
) -> None:
    await declare("f")
    await declare("g")
    first = await ask(user, trigger_id="k")
    assert await ask(admin, trigger_id="k") != first
    answer = await user.http.post(PATH.replace("/f/", "/g/"), json={"trigger_id": "k"})
    assert answer.json()["execution_id"] != first


async def test_many_at_once_with_one_key_start_one(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    ids = await asyncio.gather(*(ask(user, trigger_id="k", input={"n": 1}) for _ in range(20)))
    assert len(set(ids)) == 1
    assert await count(runtime) == 1


async def test_a_delay_is_kept(runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]) -> None:
    await declare("f")
    later, now = await ask(user, delay_seconds=3600), await ask(user)
    await until(user, now, "COMPLETED")
    assert (await user.http.get(f"/executions/{later}")).json()["status"] == "PENDING"
    due = update(ExecutionRow).where(ExecutionRow.id == UUID(later)).values(run_at=ExecutionRow.created_at)
    await runtime.database.rows(due)
    await until(user, later, "COMPLETED")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.com/x", "does not list it"),
        ("http://10.0.0.1/", "does not list it"),
        ("http://169.254.169.254/", "metadata"),
        ("gopher://127.0.0.1/", "http:// or https://"),
        ("x", "http:// or https://"),
    ],
)
async def test_callbacks_to_unlisted_addresses_are_refused(
    runtime: Runtime, user: Person, declare: Declare, url: str, reason: str
) -> None:
    await declare("f")
    cases: tuple[tuple[str, str, Json], ...] = (
        ("callback_url", PATH, {}),
        ("callback_url", PATH.replace("/async", "/batch"), {"inputs": [{}]}),
        ("batch_callback_url", PATH.replace("/async", "/batch"), {"inputs": [{}]}),
    )
    for field, path, body in cases:
        answer = await user.http.post(path, json={field: url, **body})
        assert answer.status_code == 422, answer.text
        [problem] = answer.json()["detail"]
        assert problem["loc"] == ["body", field]
        assert reason in problem["msg"]
    assert await count(runtime) == 0


async def delivered(runtime: Runtime, receiver: Receiver, least: int) -> list[Json]:
    """What arrived, once it is so much and nothing more is to be sent; the scheduler's part is done here."""
    await CALLBACK_LOOP.step(runtime)
    to_send = select(TaskRow.id).where(TaskRow.status != "COMPLETED")
    worker = asyncio.create_task(Worker(runtime, TASK_JOB, 5).run())
    async with asyncio.timeout(60):
        # A worker that stopped as soon as all has arrived would not write that down, and the next would send it again.
        while len(receiver.got) < least or await runtime.database.rows(to_send):
            await asyncio.sleep(0.02)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    return receiver.bodies()


async def test_the_end_is_told_signed_and_once(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("f")
    async with receiving() as receiver:
        execution_id = await ask(user, callback_url=receiver.url, trigger_id="k", input={"a": 1})
        await until(user, execution_id, "COMPLETED")
        [body] = await delivered(runtime, receiver, 1)
        await CALLBACK_LOOP.step(runtime)
        assert len(await runtime.database.rows(select(TaskRow.id))) == 1
        headers, raw = receiver.got[0]
    assert body["type"] == "execution.completed"
    data = body["data"]
    assert (data["execution_id"], data["function"], data["trigger_id"]) == (execution_id, "default/f", "k")
    assert (data["status"], data["output_data"], data["output_omitted"]) == ("COMPLETED", {"a": 1}, False)
    assert body["timestamp"] == data["completed_at"] is not None
    message = Message(headers["webhook-id"], raw)
    assert headers.items() >= signed_headers([SECRET], message, int(headers["webhook-timestamp"])).items()


async def test_a_receiver_that_is_away_is_told_later_under_the_same_id(runtime: Runtime, user: Person) -> None:
    async with receiving() as receiver:
        await record(runtime, user, callback_url=receiver.url)
        receiver.answers = [503]
        await delivered(runtime, receiver, 2)
        assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]
        assert receiver.got[0][1] == receiver.got[1][1]


async def test_every_sort_of_end_is_told(
    runtime: Runtime, user: Person, admin: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("f", "def handler(input_data, context):\n    raise ValueError('no')\n")
    async with receiving() as receiver:
        failed = await ask(user, callback_url=receiver.url)
        canceled = await ask(user, callback_url=receiver.url, delay_seconds=3600)
        await user.http.post(f"/executions/{canceled}/cancel")
        await until(user, failed, "FAILED")
        bodies = await delivered(runtime, receiver, 2)
        assert {body["type"]: body["data"]["execution_id"] for body in bodies} == {
            "execution.failed": failed,
            "execution.cancelled": canceled,
        }
        # A dead letter that is tried again has another end to tell of.
        await admin.http.post(f"/api/v1/queue/dlq/{failed}/retry")
        while not (await admin.http.get("/api/v1/queue/dlq")).json():
            await asyncio.sleep(0.02)
        await delivered(runtime, receiver, 3)
        ids = [headers["webhook-id"] for headers, _ in receiver.got]
        assert len(set(ids)) == 3


async def test_a_large_result_is_to_be_asked_for(runtime: Runtime, user: Person) -> None:
    async with receiving() as receiver:
        await record(runtime, user, callback_url=receiver.url, output_data="x" * MAX_RESULT)
        [body] = await delivered(runtime, receiver, 1)
    assert (body["data"]["output_data"], body["data"]["output_omitted"]) == (None, True)


async def test_running_again(
    runtime: Runtime, app: FastAPI, user: Person, admin: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("f")
    first = await ask(user, input={"a": 1}, trigger_id="k")
    await until(user, first, "COMPLETED")
    await user.http.put("/api/v1/functions/default/f", json={"name": "renamed"})
    answer = await user.http.post(f"/executions/{first}/rerun")
    assert answer.status_code == 202, answer.text
    again = answer.json()
    assert (again["status"], again["rerun_of"]) == ("queued", first)
    row = await until(user, again["execution_id"], "COMPLETED")
    assert (row["input_data"], row["output_data"], row["rerun_of"]) == ({"a": 1}, {"a": 1}, first)
    assert (row["function_name"], row["trigger_type"]) == ("default/renamed", "MANUAL")

    other = await make_person(runtime, app, ["Users"])
    async with other.http:
        assert (await other.http.post(f"/executions/{first}/rerun")).status_code == 404
    assert (await user.http.post(f"/executions/{uuid4()}/rerun")).status_code == 404
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    await user.http.put("/api/v1/functions/default/renamed", json={"input_schema": schema})
    refused = await user.http.post(f"/executions/{first}/rerun")
    assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["input", "a"])
    await user.http.delete("/api/v1/functions/default/renamed")
    assert (await user.http.post(f"/executions/{first}/rerun")).status_code == 404


async def test_code_without_a_function_cannot_run_again(runtime: Runtime, user: Person) -> None:
    execution_id = await record(runtime, user, function_id=None)
    assert (await user.http.post(f"/executions/{execution_id}/rerun")).status_code == 400

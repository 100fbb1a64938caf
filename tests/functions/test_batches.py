"""Batches: many executions with one request, followed and cancelled together."""

from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select, update

from sinas_server.functions.batches import BATCH_LOOP
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import BatchRow
from sinas_server.settings import Settings
from tests.functions.conftest import Declare, Json, until
from tests.functions.receiver import receiving
from tests.functions.test_options import delivered
from tests.functions.test_options import settings as settings_with_callbacks
from tests.people import Person, http_client, make_key, make_person

PATH = "/functions/default/f/execute/batch"
settings = settings_with_callbacks


async def ask(person: Person, inputs: list[Json], **more: object) -> Json:
    answer = await person.http.post(PATH, json={"inputs": inputs, **more})
    assert answer.status_code == 202, answer.text
    return cast(Json, answer.json())


async def get(person: Person, batch_id: str, path: str = "") -> Json:
    answer = await person.http.get(f"/batches/{batch_id}{path}")
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())


async def count(runtime: Runtime) -> int:
    return int((await runtime.database.rows(select(func.count()).select_from(ExecutionRow)))[0][0])


async def test_each_input_is_executed(user: Person, declare: Declare, worker: Worker[Any]) -> None:
    code = "def handler(input_data, context):\n    return 10 // input_data['n']\n"
    await declare("f", code)
    batch = await ask(user, [{"n": 1}, {"n": 0}, {"n": 5}], trigger_id_prefix="row")
    assert (batch["total"], batch["status"], len(batch["execution_ids"])) == (3, "queued", 3)
    for execution_id, status in zip(batch["execution_ids"], ("COMPLETED", "FAILED", "COMPLETED"), strict=True):
        await until(user, execution_id, status)
    shown = await get(user, batch["batch_id"])
    assert (shown["status"], shown["completed"], shown["failed"]) == ("partial", 2, 1)
    assert [shown[key] for key in ("total", "queued", "running", "cancelled")] == [3, 0, 0, 0]
    members = await get(user, batch["batch_id"], "/executions?limit=500")
    assert [one["execution_id"] for one in members["executions"]] == batch["execution_ids"]
    assert [one["trigger_id"] for one in members["executions"]] == ["row-0", "row-1", "row-2"]
    assert [one["status"] for one in members["executions"]] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert "ZeroDivisionError" in members["executions"][1]["error"]
    row = (await user.http.get(f"/executions/{batch['execution_ids'][2]}")).json()
    assert (row["output_data"], row["batch_id"]) == (2, batch["batch_id"])
    assert len((await user.http.get(f"/executions?batch_id={batch['batch_id']}")).json()) == 3


async def test_an_invalid_input_is_named_and_nothing_is_inserted(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("f", input_schema={"type": "object", "properties": {"n": {"type": "integer"}}})
    answer = await user.http.post(PATH, json={"inputs": [{"n": 1}, {"n": "x"}, {"n": 2}, {"n": None}]})
    assert answer.status_code == 422
    assert [problem["loc"] for problem in answer.json()["detail"]] == [
        ["body", "inputs", 1, "n"],
        ["body", "inputs", 3, "n"],
    ]
    assert await count(runtime) == 0
    assert await runtime.database.rows(select(BatchRow.id)) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"inputs": [{}] * 1001}, 400),
        ({"inputs": []}, 422),
        ({"inputs": [1]}, 422),
        ({"inputs": [{"a": "\x00"}]}, 422),
        ({}, 422),
        ({"inputs": [{}], "delay_seconds": -1}, 422),
        ({"inputs": [{}], "trigger_id_prefix": "x" * 241}, 422),
    ],
)
async def test_bad_batches_are_refused(
    runtime: Runtime, user: Person, declare: Declare, body: Json, status: int
) -> None:
    await declare("f")
    answer = await user.http.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    assert await count(runtime) == 0


async def test_a_thousand_at_once(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    batch = await ask(user, [{"n": number} for number in range(1000)])
    assert await count(runtime) == 1000
    members = await get(user, batch["batch_id"], "/executions?limit=3&offset=997")
    assert [one["index"] for one in members["executions"]] == [997, 998, 999]
    assert (members["total"], members["limit"], members["offset"]) == (1000, 3, 997)
    again = await ask(user, [{}], trigger_id_prefix="p")
    assert again["execution_ids"] != (await ask(user, [{}], trigger_id_prefix="p"))["execution_ids"]


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (("PENDING", "PENDING"), "queued"),
        (("PENDING", "COMPLETED"), "running"),
        (("RUNNING", "CANCELLED"), "running"),
        (("AWAITING_INPUT", "COMPLETED"), "running"),
        (("COMPLETED", "COMPLETED"), "completed"),
        (("COMPLETED", "FAILED"), "partial"),
        (("COMPLETED", "CANCELLED"), "partial"),
        (("FAILED", "CANCELLED"), "failed"),
        (("FAILED", "FAILED"), "failed"),
        (("CANCELLED", "CANCELLED"), "cancelled"),
    ],
)
async def test_the_status_of_a_batch(
    runtime: Runtime, user: Person, declare: Declare, states: tuple[str, ...], status: str
) -> None:
    await declare("f")
    batch = await ask(user, [{}, {}])
    for execution_id, state in zip(batch["execution_ids"], states, strict=True):
        row = update(ExecutionRow).where(ExecutionRow.id == UUID(execution_id))
        await runtime.database.rows(row.values(status=state))
    await BATCH_LOOP.step(runtime)
    shown = await get(user, batch["batch_id"])
    assert shown["status"] == status
    assert (shown["finished_at"] is None) == (status in ("queued", "running"))
    for state in {*states}:
        found = await get(user, batch["batch_id"], f"/executions?status={state.lower()}")
        assert found["total"] == states.count(state)
    assert (await user.http.get(f"/batches/{batch['batch_id']}/executions?status=x")).status_code == 422


async def test_cancelling_keeps_what_has_ended(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    batch = await ask(user, [{}, {}, {}])
    first = update(ExecutionRow).where(ExecutionRow.id == UUID(batch["execution_ids"][0]))
    await runtime.database.rows(first.values(status="COMPLETED"))
    for _ in range(2):
        answer = await user.http.post(f"/batches/{batch['batch_id']}/cancel")
        assert answer.status_code == 200
        assert (answer.json()["status"], answer.json()["cancelled"]) == ("partial", 2)


async def test_the_end_of_a_batch_is_told_once(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    async with receiving() as receiver:
        batch = await ask(user, [{}, {}], batch_callback_url=receiver.url)
        await BATCH_LOOP.step(runtime)
        await user.http.post(f"/batches/{batch['batch_id']}/cancel")
        for _ in range(2):
            await BATCH_LOOP.step(runtime)
        [body] = await delivered(runtime, receiver, 1)
        assert (body["type"], body["data"]["batch_id"]) == ("batch.cancelled", batch["batch_id"])
        assert body["data"]["cancelled"] == 2
        both = await ask(user, [{}], callback_url=receiver.url)
        await user.http.post(f"/batches/{both['batch_id']}/cancel")
        bodies = await delivered(runtime, receiver, 2)
        assert (bodies[1]["type"], bodies[1]["data"]["batch_index"]) == ("execution.cancelled", 0)


async def test_batches_belong_to_who_asked(
    runtime: Runtime, app: FastAPI, user: Person, admin: Person, declare: Declare
) -> None:
    await declare("f")
    batch = await ask(user, [{}])
    other = await make_person(runtime, app, ["Users"])
    async with other.http:
        assert (await other.http.post(PATH, json={"inputs": [{}]})).status_code == 403
        for path in ("", "/executions"):
            assert (await other.http.get(f"/batches/{batch['batch_id']}{path}")).status_code == 404
        assert (await other.http.post(f"/batches/{batch['batch_id']}/cancel")).status_code == 404
    key = await make_key(runtime, user.id, "sinas.functions.execute:own")
    async with http_client(app, {"X-API-Key": key}) as narrow:
        assert (await narrow.get(f"/batches/{batch['batch_id']}")).status_code == 403
    assert (await get(admin, batch["batch_id"]))["status"] == "queued"
    assert (await user.http.get(f"/batches/{uuid4()}")).status_code == 404
    assert (await user.http.get("/batches/x")).status_code == 422


async def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="CALLBACK_ALLOWED_HOSTS needs CALLBACK_SECRET"):
        Settings(_env_file=None, callback_allowed_hosts=("x",))
    with pytest.raises(ValueError, match="24 to 64 bytes"):
        Settings(_env_file=None, callback_secret="whsec_YWJj")

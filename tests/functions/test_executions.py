"""Reading the history of executions, and who may."""

from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import insert, update

from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.runtime import Runtime
from tests.functions.conftest import Declare
from tests.people import Person, http_client, make_key, make_person


async def record(runtime: Runtime, person: Person, **values: object) -> str:
    """An execution in the history."""
    row = {
        "user_id": person.id,
        "user_email": person.email,
        "function_id": uuid4(),
        "namespace": "default",
        "name": "f",
        "version": 1,
        "trigger_type": "API",
        "input_data": {},
        "timeout": 300,
        "timeout_from": "settings",
        "max_retries": 0,
        "status": "COMPLETED",
        **values,
    }
    [found] = await runtime.database.rows(insert(ExecutionRow).values(**row).returning(ExecutionRow.id))
    return str(found.id)


async def ids(person: Person, query: str = "") -> list[str]:
    answer = await person.http.get(f"/executions{query}")
    assert answer.status_code == 200, answer.text
    return [item["execution_id"] for item in answer.json()]


async def test_the_newest_comes_first_and_pages_fit_together(runtime: Runtime, user: Person) -> None:
    made = [await record(runtime, user) for _ in range(5)]
    assert await ids(user) == made[::-1]
    assert [*await ids(user, "?limit=2"), *await ids(user, "?skip=2&limit=1000")] == made[::-1]


async def test_filters(runtime: Runtime, user: Person) -> None:
    chat = uuid4()
    by_agent = await record(runtime, user, chat_id=chat, trigger_type="AGENT", tool_call_id="call_0")
    failed = await record(runtime, user, namespace="other", status="FAILED", error="x")
    renamed = await record(runtime, user, name="g", trigger_type="MANUAL")
    for query, found in (
        ("?function_name=f", [failed, by_agent]),
        ("?function_name=other/f", [failed]),
        ("?function_name=default/g", [renamed]),
        ("?function_name=nothing", []),
        ("?status=failed", [failed]),
        ("?status=FAILED", [failed]),
        (f"?chat_id={chat}", [by_agent]),
        ("?trigger_type=agent", [by_agent]),
        ("?trigger_type=MANUAL&status=completed", [renamed]),
    ):
        assert await ids(user, query) == found, query
    for query in ("?status=done", "?trigger_type=x", "?chat_id=1", "?limit=0", "?limit=1001", "?skip=-1", "?skip=9e9"):
        assert (await user.http.get(f"/executions{query}")).status_code == 422, query


async def test_the_row_has_every_field_clients_read(runtime: Runtime, user: Person) -> None:
    execution_id = await record(runtime, user, status="PENDING")
    row = (await user.http.get(f"/executions/{execution_id}")).json()
    assert row["id"] == row["execution_id"] == execution_id
    assert row["function_name"] == "default/f"
    assert row["started_at"] is not None
    assert row["trigger_id"] == ""
    assert {"chat_id", "tool_call_id", "output_data", "error", "traceback", "completed_at", "duration_ms"} <= row.keys()


async def test_executions_belong_to_whom_they_run_for(
    runtime: Runtime, app: FastAPI, user: Person, admin: Person, guest: Person
) -> None:
    execution_id = await record(runtime, user)
    other = await make_person(runtime, app, ["Users"])
    async with other.http:
        assert await ids(other) == []
        for path in ("/executions/{}", "/executions/{}/steps", "/jobs/{}", "/jobs/{}/result"):
            assert (await other.http.get(path.format(execution_id))).status_code == 404, path
        for verb, body in (("cancel", None), ("continue", {"input": "x"})):
            answer = await other.http.post(f"/executions/{execution_id}/{verb}", json=body)
            assert answer.status_code == 404, verb
    assert await ids(admin) == [execution_id]
    assert (await admin.http.get(f"/executions/{execution_id}")).status_code == 200
    assert await ids(guest) == []
    assert (await guest.http.get(f"/executions/{execution_id}")).status_code == 403
    key = await make_key(runtime, user.id, "sinas.functions.execute:own")
    async with http_client(app, {"X-API-Key": key}) as narrow:
        assert (await narrow.get(f"/executions/{execution_id}")).status_code == 403
        assert (await narrow.get("/executions")).json() == []


@pytest.mark.parametrize(("status", "shown"), [("PENDING", "queued"), ("RUNNING", "running"), ("FAILED", "failed")])
async def test_a_job_is_an_execution_in_other_words(runtime: Runtime, user: Person, status: str, shown: str) -> None:
    execution_id = await record(runtime, user, status=status, error="why" if status == "FAILED" else None)
    job = (await user.http.get(f"/jobs/{execution_id}")).json()
    assert (job["status"], job["job_id"], job["function"]) == (shown, execution_id, "default/f")
    result = await user.http.get(f"/jobs/{execution_id}/result")
    assert result.status_code == 409
    assert shown in result.json()["detail"]


async def test_only_what_waits_for_input_can_go_on(runtime: Runtime, user: Person) -> None:
    execution_id = await record(runtime, user)
    for given in ({"input": {"value": "x"}}, {"input": "x"}):
        answer = await user.http.post(f"/executions/{execution_id}/continue", json=given)
        assert answer.status_code == 400
    assert (await user.http.post(f"/executions/{execution_id}/continue", json={})).status_code == 422
    assert (await user.http.post(f"/executions/{uuid4()}/continue", json={"input": "x"})).status_code == 404


async def test_no_credentials_no_answer(client: httpx2.AsyncClient, declare: Declare) -> None:
    await declare("f")
    for path in ("/executions", f"/executions/{uuid4()}", f"/jobs/{uuid4()}", "/functions", "/api/v1/functions"):
        assert (await client.get(path)).status_code == 401
    assert (await client.post("/functions/default/f/execute", json={})).status_code == 401


async def test_malformed_ids_are_no_server_errors(user: Person) -> None:
    for path in ("/executions/x", "/executions/x/steps", "/jobs/x", "/jobs/x/result", "/executions/%F0%9F"):
        assert (await user.http.get(path)).status_code in (404, 422), path
    for verb in ("cancel", "continue"):
        assert (await user.http.post(f"/executions/x/{verb}", json={"input": "x"})).status_code == 422


async def test_canceling_what_is_queued(runtime: Runtime, user: Person) -> None:
    execution_id = await record(runtime, user, status="PENDING")
    child = await record(runtime, user, status="PENDING", parent_id=execution_id, depth=1)
    apart = await record(runtime, user, status="PENDING", parent_id=execution_id, depth=0)
    answer = await user.http.post(f"/executions/{execution_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")
    states = {item["id"]: item["status"] for item in (await user.http.get("/executions")).json()}
    assert states == {execution_id: "CANCELLED", child: "CANCELLED", apart: "PENDING"}  # nobody waits for the last
    await runtime.database.rows(update(ExecutionRow).values(status="COMPLETED"))
    assert (await user.http.post(f"/executions/{apart}/cancel")).status_code == 409

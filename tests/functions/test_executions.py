"""Reading the history of executions, and who may."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import ColumnElement, insert, select, update

from sinas_server.functions import retention
from sinas_server.functions import tree as tree_module
from sinas_server.functions.batches import create_batch
from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.retention import purge_executions
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import BatchRow
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
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


async def test_what_is_cancelled_twice_at_once_is_cancelled_for_both(
    runtime: Runtime, user: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution_id = await record(runtime, user, status="PENDING")

    async def after_another(db: Db, runtime: Runtime, which: ColumnElement[bool]) -> set[UUID]:
        async with runtime.database.unit() as others:
            await cancel_executions(others, runtime, which)
        return await cancel_executions(db, runtime, which)

    monkeypatch.setattr("sinas_server.functions.executions.cancel_executions", after_another)
    answer = await user.http.post(f"/executions/{execution_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "CANCELLED")


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


async def test_more_filters(runtime: Runtime, user: Person) -> None:
    old = await record(runtime, user, created_at=datetime(2026, 1, 1, tzinfo=UTC), trigger_id="a")
    new = await record(runtime, user, created_at=datetime(2026, 1, 3, tzinfo=UTC), tool_call_id="call_0")
    for query, found in (
        ("?since=2026-01-02T00:00:00Z", [new]),
        ("?until=2026-01-02T00:00:00Z", [old]),
        ("?since=2026-01-01T00:00:00Z&until=2026-01-03T00:00:00Z", [old]),
        ("?trigger_id=a", [old]),
        ("?tool_call_id=call_0", [new]),
        (f"?batch_id={uuid4()}", []),
    ):
        assert await ids(user, query) == found, query
    for query in ("?since=yesterday", "?batch_id=1", f"?trigger_id={'x' * 256}"):
        assert (await user.http.get(f"/executions{query}")).status_code == 422, query


async def test_the_tree_below_an_execution(runtime: Runtime, user: Person) -> None:
    root = await record(runtime, user, tool_call_id="call_0")
    first = await record(runtime, user, parent_id=root, name="first")
    second = await record(runtime, user, parent_id=root, name="second")
    below = await record(runtime, user, parent_id=first, name="below")
    await record(runtime, user, name="apart")
    tree = (await user.http.get(f"/executions/{root}/tree")).json()
    assert (tree["id"], tree["tool_call_id"]) == (root, "call_0")
    assert [child["id"] for child in tree["children"]] == [first, second]
    assert [child["function_name"] for child in tree["children"][0]["children"]] == ["default/below"]
    assert tree["children"][0]["children"][0] == {
        **tree["children"][0]["children"][0],
        "id": below,
        "children": [],
        "status": "COMPLETED",
    }
    part = (await user.http.get(f"/executions/{first}/tree")).json()
    assert (part["id"], [child["id"] for child in part["children"]]) == (first, [below])


async def test_a_tree_that_is_too_large_says_so(
    runtime: Runtime, user: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_module, "MAX_NODES", 3)
    root = await record(runtime, user)
    first, second, _ = [await record(runtime, user, parent_id=root) for _ in range(3)]
    answer = await user.http.get(f"/executions/{root}/tree")
    assert answer.headers["X-Truncated"] == "true"
    assert [child["id"] for child in answer.json()["children"]] == [first, second]


async def test_what_ended_long_ago_is_forgotten(runtime: Runtime, user: Person) -> None:
    old = now() - timedelta(days=runtime.settings.execution_retention_days, minutes=1)
    gone = {"created_at": old, "completed_at": old}
    await record(runtime, user, **gone)
    await record(runtime, user, **gone, status="FAILED", dead_at=old)
    kept = [
        await record(runtime, user, created_at=old, completed_at=now()),
        await record(runtime, user, created_at=old, status="PENDING"),
        await record(runtime, user, created_at=old, status="AWAITING_INPUT"),
        await record(runtime, user, completed_at=now()),
    ]
    async with runtime.database.unit() as db:
        batch = await create_batch(db, SYSTEM, "executions", "default/f", 1, None)
        await db.execute(update(BatchRow).values(created_at=old, finished_at=old))
        recent = await create_batch(db, SYSTEM, "executions", "default/f", 1, None)
    await purge_executions(runtime)
    assert set(await ids(user)) == set(kept)
    left = [row.id for row in await runtime.database.rows(select(BatchRow.id))]
    assert (batch in left, recent in left) == (False, True)


async def test_many_are_forgotten_in_small_steps(
    runtime: Runtime, user: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    old = now() - timedelta(days=1000)
    for _ in range(5):
        await record(runtime, user, created_at=old, completed_at=old)
    await purge_executions(runtime)
    assert await ids(user) == []

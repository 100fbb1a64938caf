"""Executing functions over HTTP, in the real sandbox."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI

from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from tests.functions.conftest import Declare, run, until
from tests.people import Person, http_client, make_key, make_person

CALL = """
import json, os, urllib.request

def call(context, path, body=None, method=None):
    request = urllib.request.Request(
        os.environ["SINAS_URL"] + path,
        None if body is None else json.dumps(body).encode(),
        {"Authorization": "Bearer " + context["access_token"], "Content-Type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status_code": error.code, **json.load(error)}
"""

pytestmark = pytest.mark.usefixtures("worker")


async def test_a_function_runs_and_its_result_comes_back(user: Person, declare: Declare) -> None:
    await declare("double", "def handler(input_data, context):\n    return {'n': input_data['n'] * 2}\n")
    answer = await user.http.post("/functions/default/double/execute", json={"input": {"n": 21}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body == {"status": "success", "execution_id": body["execution_id"], "result": {"n": 42}, "error": None}


async def test_the_context_is_exactly_as_specified(user: Person, declare: Declare) -> None:
    await declare("ctx", "def handler(input_data, context):\n    return dict(context)\n")
    answer = await run(user, "ctx", headers={"X-Trigger": "manual"})
    context = answer["result"]
    assert context.pop("access_token").count(".") == 2
    assert context == {
        "user_id": str(user.id),
        "user_email": user.email,
        "execution_id": answer["execution_id"],
        "trigger_type": "MANUAL",
        "chat_id": "",
        "secrets": {},
    }


async def test_output_and_traceback_are_kept_and_a_failure_is_200(user: Person, declare: Declare) -> None:
    code = (
        "import sys\ndef handler(input_data, context):\n    print('said')\n"
        "    print('nul \\0', file=sys.stderr)\n    return 1 / 0\n"
    )
    await declare("fails", code)
    answer = await run(user, "fails")
    assert (answer["status"], answer["result"]) == ("error", None)
    assert "ZeroDivisionError" in answer["error"]
    row = (await user.http.get(f"/executions/{answer['execution_id']}")).json()
    assert (row["status"], row["cause"], row["stdout"]) == ("FAILED", "error", "said\n")
    assert row["stderr"] == "nul \ufffd\n"
    assert 'default/fails.py", line 5' in row["traceback"]
    assert row["duration_ms"] >= 0


@pytest.mark.parametrize("result", ["[chr(0xd800)]", "['nul ' + chr(0)]", "{1}", "float('nan')", "handler"])
async def test_a_result_that_is_no_json_fails_clearly(user: Person, declare: Declare, result: str) -> None:
    await declare("odd", f"def handler(input_data, context):\n    return {result}\n")
    answer = await run(user, "odd")
    assert answer["status"] == "error"
    assert "result" in answer["error"]


async def test_a_result_may_not_be_nested_absurdly(user: Person, declare: Declare) -> None:
    code = "def handler(input_data, context):\n    x = []\n    for _ in range(200):\n        x = [x]\n    return x\n"
    await declare("deep", code)
    assert "128 deep" in (await run(user, "deep"))["error"]


async def test_missing_entry_points_fail_and_legacy_ones_warn(user: Person, declare: Declare) -> None:
    await declare("nothing", "x = 1\n")
    assert "handler" in (await run(user, "nothing"))["error"]
    await declare("send-mail", "def send_mail(input_data, context):\n    return 'sent'\n")
    answer = await run(user, "send-mail")
    assert answer["result"] == "sent"
    row = (await user.http.get(f"/executions/{answer['execution_id']}")).json()
    assert "DeprecationWarning" in row["stderr"]


async def test_what_was_called_before_is_called_as_it_is_now(user: Person, declare: Declare) -> None:
    """A process that remembers a function neither runs, nor refuses, nor names what it was."""
    at, here = "/functions/default/changing/execute", "/api/v1/functions/default/changing"

    async def call(given: int) -> tuple[int, Any]:
        answer = await user.http.post(at, json={"input": {"n": given}})
        return answer.status_code, answer.json().get("result")

    async def edit(**values: object) -> None:
        assert (await user.http.put(here, json=values)).status_code == 200

    schema = {"properties": {"n": {"maximum": 5}}}
    await declare("changing", "def handler(input_data, context):\n    return 'old'\n", input_schema=schema)
    assert await call(1) == (200, "old")
    await edit(code="def handler(input_data, context):\n    return 'new'\n")
    assert await call(1) == (200, "new")
    assert await call(9) == (422, None)
    await edit(input_schema={})
    assert await call(9) == (200, "new")
    await edit(is_active=False)
    assert await call(1) == (404, None)
    await edit(is_active=True)
    assert await call(1) == (200, "new")
    assert (await user.http.delete(here)).status_code in (200, 204)
    assert await call(1) == (404, None)
    await declare("changing", "def handler(input_data, context):\n    return 'another'\n")
    assert await call(1) == (200, "another")


async def test_input_and_output_are_held_to_their_schemas(user: Person, declare: Declare) -> None:
    number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    await declare("typed", input_schema=number, output_schema={"properties": {"n": {"maximum": 5}}})
    wrong = await user.http.post("/functions/default/typed/execute", json={"input": {"n": "one"}})
    assert wrong.status_code == 422
    assert wrong.json()["detail"][0]["loc"] == ["body", "input", "n"]
    missing = await user.http.post("/functions/default/typed/execute/async", json={})
    assert (missing.status_code, missing.json()["detail"][0]["loc"]) == (422, ["body", "input"])
    answer = await run(user, "typed", {"n": 9})
    assert answer["status"] == "error"
    assert "n: 9 is greater than the maximum of 5" in answer["error"]


async def test_time_limits_say_whose_they_are(user: Person, declare: Declare) -> None:
    sleep = "import time\ndef handler(input_data, context):\n    time.sleep(60)\n"
    await declare("slow", sleep)
    answer = await run(user, "slow", timeout=1)
    assert (answer["status"], answer["error"]) == ("timeout", "Time limit exceeded: 1 seconds (the request's timeout)")
    await declare("strict", sleep, timeout=1)
    answer = await run(user, "strict", timeout=30)
    assert (answer["status"], "the function's own timeout" in answer["error"]) == ("timeout", True)


@pytest.mark.parametrize(
    "body",
    [
        {"input": []},
        {"input": "text"},
        {"timeout": 0},
        {"timeout": 1.5},
        {"timeout": 86401},
        {"input": {"a": "nul \x00"}},
        [],
    ],
)
async def test_bad_requests_are_refused(user: Person, declare: Declare, body: object) -> None:
    await declare("f")
    assert (await user.http.post("/functions/default/f/execute", json=body)).status_code == 422


async def test_bad_asynchronous_requests_are_refused(user: Person, declare: Declare) -> None:
    await declare("f")
    for body, status in (
        ({"delay_seconds": -1}, 422),
        ({"delay_seconds": 8 * 86400}, 422),
        ({"trigger_id": "x" * 256}, 422),
        ({"callback_url": "https://example.com"}, 422),
    ):
        answer = await user.http.post("/functions/default/f/execute/async", json=body)
        assert answer.status_code == status, answer.text
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    assert (await user.http.post("/functions/default/f/execute", json={"input": deep})).status_code == 422


async def test_only_those_who_may_execute_do(
    runtime: Runtime, app: FastAPI, user: Person, guest: Person, admin: Person, declare: Declare
) -> None:
    await declare("mine")
    other = await make_person(runtime, app, ["Users"])
    async with other.http:
        for person in (other, guest):
            assert (await person.http.post("/functions/default/mine/execute", json={})).status_code == 403
    assert (await run(admin, "mine", {"a": 1}))["result"] == {"a": 1}
    assert (await user.http.post("/functions/default/none/execute", json={})).status_code == 404
    await user.http.put("/api/v1/functions/default/mine", json={"is_active": False})
    assert (await user.http.post("/functions/default/mine/execute", json={})).status_code == 404
    key = await make_key(runtime, user.id, "sinas.functions/default/other.execute:own")
    async with http_client(app, {"X-API-Key": key}) as narrow:
        assert (await narrow.post("/functions/default/mine/execute", json={})).status_code == 403


async def test_an_asynchronous_execution_is_there_at_once_and_ends(user: Person, declare: Declare) -> None:
    await declare("f")
    answer = await user.http.post("/functions/default/f/execute/async", json={"input": {"a": 1}, "trigger_id": "t1"})
    assert answer.status_code == 202
    execution_id = answer.json()["execution_id"]
    assert answer.json() == {"execution_id": execution_id, "status": "queued"}
    row = (await user.http.get(f"/executions/{execution_id}")).json()
    assert (row["trigger_id"], row["function_name"], row["started_at"] is None) == ("t1", "default/f", False)
    row = await until(user, execution_id, "COMPLETED")
    assert row["output_data"] == {"a": 1}
    job = (await user.http.get(f"/jobs/{execution_id}")).json()
    assert (job["status"], job["execution_id"]) == ("completed", execution_id)
    assert (await user.http.get(f"/jobs/{execution_id}/result")).json() == {"a": 1}


async def test_a_delayed_execution_waits_for_its_time(user: Person, declare: Declare) -> None:
    await declare("f")
    answer = await user.http.post("/functions/default/f/execute/async", json={"delay_seconds": 3600})
    execution_id = answer.json()["execution_id"]
    await run(user, "f")  # asked for later, done before
    assert (await user.http.get(f"/jobs/{execution_id}")).json()["status"] == "queued"
    assert (await user.http.get(f"/jobs/{execution_id}/result")).status_code == 409
    await user.http.post(f"/executions/{execution_id}/cancel")


async def test_the_token_works_from_inside_and_dies_with_the_execution(
    user: Person, app: FastAPI, declare: Declare
) -> None:
    code = (
        f"{CALL}\ndef handler(input_data, context):\n    return {{'me': call(context, '/auth/me'), "
        "'keys': call(context, '/api/v1/api-keys'), 'token': context['access_token']}\n"
    )
    await declare("inside", code)
    answer = await run(user, "inside")
    assert answer["status"] == "success", answer
    result = answer["result"]
    assert result["me"]["id"] == str(user.id)
    assert result["keys"] == [] or result["keys"]["status_code"] == 403
    async with http_client(app, {"Authorization": f"Bearer {result['token']}"}) as late:
        assert (await late.get("/auth/me")).status_code == 401


async def test_a_function_never_gives_more_than_its_owner_has(admin: Person, declare: Declare) -> None:
    await declare("spy", f"{CALL}\ndef handler(input_data, context):\n    return call(context, '/functions')\n")
    await declare("secret", by=admin.http)
    names = [item["name"] for item in (await run(admin, "spy"))["result"]]
    # Its owner may read his own functions only, so what else the administrator may read is out of reach.
    assert names == ["spy"]


async def test_nested_executions_need_no_free_slot_and_are_limited(user: Person, declare: Declare) -> None:
    code = (
        f"{CALL}\ndef handler(input_data, context):\n    if not input_data['left']:\n        return 'bottom'\n"
        "    return call(context, '/functions/default/nest/execute', {'input': {'left': input_data['left'] - 1}})\n"
    )
    await declare("nest", code)
    answers = await asyncio.gather(*(run(user, "nest", {"left": 3}) for _ in range(3)))  # more than there are slots
    for answer in answers:
        assert answer["result"]["result"]["result"]["result"] == "bottom", answer
    steps = (await user.http.get(f"/executions/{answers[0]['execution_id']}/steps")).json()
    assert [(step["function_name"], step["status"]) for step in steps] == [("default/nest", "COMPLETED")]
    assert steps[0]["execution_id"] == answers[0]["result"]["execution_id"]
    innermost = await run(user, "nest", {"left": 20})
    for _ in range(9):
        innermost = innermost["result"]
    assert innermost == {**innermost, "status_code": 400}
    assert "more than 8 deep" in innermost["detail"]


async def test_canceling_kills_the_process_and_what_it_waits_for(
    user: Person, app: FastAPI, worker: Worker[Any], declare: Declare
) -> None:
    await declare("sleeps", "import time\ndef handler(input_data, context):\n    time.sleep(60)\n")
    code = f"{CALL}\ndef handler(input_data, context):\n    call(context, '/functions/default/sleeps/execute', {{}})\n"
    await declare("parent", code)
    started = await user.http.post("/functions/default/parent/execute/async", json={})
    execution_id = started.json()["execution_id"]
    steps: list[Any] = []
    while [step["status"] for step in steps] != ["RUNNING"]:
        await asyncio.sleep(0.02)
        steps = (await user.http.get(f"/executions/{execution_id}/steps")).json()
    canceled = await user.http.post(f"/executions/{execution_id}/cancel")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "CANCELLED")
    while worker.running:
        await asyncio.sleep(0.02)
    assert (await until(user, steps[0]["execution_id"], "CANCELLED"))["error"] == "Canceled"
    assert worker.runtime.sandbox is not None
    while worker.runtime.sandbox.stats().in_use:
        await asyncio.sleep(0.02)
    again = await user.http.post(f"/executions/{execution_id}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "CANCELLED")
    ended = await run(user, "sleeps", timeout=1)
    assert (await user.http.post(f"/executions/{ended['execution_id']}/cancel")).status_code == 409


async def test_the_waiting_caller_learns_of_a_cancellation(user: Person, declare: Declare) -> None:
    await declare("sleeps", "import time\ndef handler(input_data, context):\n    time.sleep(60)\n")
    waiting = asyncio.create_task(run(user, "sleeps"))
    found: list[Any] = []
    while not found:
        found = (await user.http.get("/executions?status=running")).json()
        await asyncio.sleep(0.02)
    await user.http.post(f"/executions/{found[0]['id']}/cancel")
    assert (await waiting)["error"] == "Canceled"


async def test_unknown_executions_are_not_found(user: Person) -> None:
    for path in ("", "/steps"):
        assert (await user.http.get(f"/executions/{uuid4()}{path}")).status_code == 404
        assert (await user.http.get(f"/executions/nonsense{path}")).status_code == 422

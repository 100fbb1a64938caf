"""`input()`: an execution waits for a person without holding a slot, and ends with whom it runs in."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
from sqlalchemy import Executable, Row, text
from sqlalchemy.exc import OperationalError

from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Database
from sinas_server.settings import Settings
from tests.functions.conftest import Declare, Json, pool_of, queue, run, until, working
from tests.people import Person

ASK = "def handler(input_data, context):\n    return input('Your name?')\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_retry_delay": 0.0, "queue_max_retries": 1, "job_lease_seconds": 3})


async def go_on(person: Person, execution_id: str, given: object, status: int = 200) -> Json:
    answer = await person.http.post(f"/executions/{execution_id}/continue", json={"input": given}, timeout=90)
    assert answer.status_code == status, answer.text
    body: Json = answer.json()
    return body


async def test_input_pauses_and_takes_no_slot(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    code = (
        "def handler(input_data, context):\n    name = input('What is your name?')\n"
        "    sure = input(f'Confirm {name}?')\n    return {'name': name, 'confirmed': sure}\n"
    )
    await share("asks", code)
    first = await run(admin, "asks")
    execution_id = first["execution_id"]
    assert first == {"status": "awaiting_input", "execution_id": execution_id, "prompt": "What is your name?"}
    row = (await admin.http.get(f"/executions/{execution_id}")).json()
    assert (row["status"], row["prompt"], row["completed_at"]) == ("AWAITING_INPUT", "What is your name?", None)
    assert (await admin.http.get(f"/jobs/{execution_id}")).json()["status"] == "awaiting_input"
    again = await go_on(admin, execution_id, {"value": "Ann"})
    assert again == {
        "execution_id": execution_id,
        "status": "AWAITING_INPUT",
        "output_data": None,
        "prompt": "Confirm Ann?",
        "schema": {"type": "string"},
    }
    last = await go_on(admin, execution_id, "yes")
    assert (last["status"], last["prompt"]) == ("COMPLETED", None)
    assert last["output_data"] == {"name": "Ann", "confirmed": "yes"}
    assert (await go_on(admin, execution_id, "more", 400))["detail"] == (
        "the execution does not wait for input: it is COMPLETED"
    )


@pytest.mark.parametrize(
    ("given", "text_given"),
    [("a", "a"), ({"value": "a", "x": 1}, "a"), ({"input": "a", "x": 1}, "a"), ({"name": "a"}, "a"), ({"n": 7}, "7")],
)
async def test_what_may_be_given(
    admin: Person, share: Declare, worker: Worker[Any], given: object, text_given: str
) -> None:
    await share("asks", ASK)
    execution_id = (await run(admin, "asks"))["execution_id"]
    for wrong in ({}, {"a": 1, "b": 2}, 7, None):
        refused = await go_on(admin, execution_id, wrong, 422)
        assert {tuple(problem["loc"]) for problem in refused["detail"]} == {("body", "input")}
    assert (await go_on(admin, execution_id, given))["output_data"] == text_given


async def test_fifty_wait_at_once_and_others_run(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    await share("asks", ASK)
    await share("works", "def handler(input_data, context):\n    return 1\n")
    waiting = await asyncio.gather(*(run(admin, "asks") for _ in range(50)))
    assert {answer["status"] for answer in waiting} == {"awaiting_input"}, "with two slots"
    assert (await run(admin, "works"))["result"] == 1
    ends = await asyncio.gather(*(go_on(admin, one["execution_id"], str(at)) for at, one in enumerate(waiting)))
    assert [end["output_data"] for end in ends] == [str(at) for at in range(50)]
    while worker.running:  # the answers may come a moment before
        await asyncio.sleep(0.02)


async def test_the_time_limit_stands_still_while_it_waits(
    admin: Person, share: Declare, worker: Worker[Any], runtime: Runtime
) -> None:
    await share("asks", ASK, timeout=3)
    began = monotonic()
    execution_id = (await run(admin, "asks"))["execution_id"]
    await asyncio.sleep(3.5)  # longer than the limit
    assert (await go_on(admin, execution_id, "late"))["output_data"] == "late"
    without = 1000 * (monotonic() - began - 3.5)
    assert (await admin.http.get(f"/executions/{execution_id}")).json()["duration_ms"] <= without


class TestPatience:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"function_input_timeout": 0.5})

    async def test_nobody_answers(self, admin: Person, share: Declare, worker: Worker[Any]) -> None:
        await share("asks", ASK)
        execution_id = (await run(admin, "asks"))["execution_id"]
        row = await until(admin, execution_id, "FAILED")
        assert row["error"] == "TimeoutError: nobody answered within 0.5 seconds (FUNCTION_INPUT_TIMEOUT)"


async def test_cancel_of_one_that_waits(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    await share("asks", ASK)
    await pool_of(worker).scale(1)
    execution_id = (await run(admin, "asks"))["execution_id"]
    assert (await admin.http.post(f"/executions/{execution_id}/cancel")).json()["status"] == "CANCELLED"
    while pool_of(worker).workers()[0].running:
        await asyncio.sleep(0.02)
    await go_on(admin, execution_id, "x", 400)
    assert not pool_of(worker).workers()[0].draining, "the thread has ended by itself"


async def test_a_pause_of_which_the_worker_did_not_hear_is_not_repeated(
    admin: Person, share: Declare, worker: Worker[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has seen it may have answered by then, and his answer must not be lost."""
    direct, answering = Database.direct, list[asyncio.Task[Json]]()

    async def losing(database: Database, statement: Executable, given: dict[str, object]) -> Sequence[Row[Any]]:
        rows = await direct(database, statement, given)
        if "new_prompt" in given and not answering:
            execution_id = str(rows[0].id)
            answering.append(asyncio.create_task(go_on(admin, execution_id, "Ann")))
            await until(admin, execution_id, "RUNNING")
            cause = psycopg.OperationalError("the connection is lost")
            raise OperationalError("COMMIT", None, cause, connection_invalidated=True)
        return rows

    monkeypatch.setattr(Database, "direct", losing)
    await share("asks", ASK)
    execution_id = await queue(admin, "asks")
    row = await until(admin, execution_id, "COMPLETED")
    assert (row["output_data"], (await answering[0])["status"]) == ("Ann", "COMPLETED")


async def test_others_may_not_answer(admin: Person, user: Person, share: Declare, worker: Worker[Any]) -> None:
    await share("asks", ASK)
    execution_id = (await run(admin, "asks"))["execution_id"]
    await go_on(user, execution_id, "x", 404)
    answers = (
        "import json, os, urllib.error, urllib.request\ndef handler(input_data, context):\n"
        "    headers = {'Authorization': 'Bearer ' + context['access_token'], 'Content-Type': 'application/json'}\n"
        "    url = os.environ['SINAS_URL'] + '/executions/' + input_data['id'] + '/continue'\n"
        '    request = urllib.request.Request(url, b\'{"input": "x"}\', headers)\n'
        "    try: urllib.request.urlopen(request)\n    except urllib.error.HTTPError as error: return error.code\n"
    )
    await share("answers", answers)
    assert (await run(admin, "answers", {"id": execution_id}))["result"] == 403, "code does not answer for people"


async def test_input_belongs_into_the_handler(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    await share("early", "name = input('?')\ndef handler(input_data, context):\n    return name\n")
    assert "input() can be called only while the handler runs" in (await run(admin, "early"))["error"]


async def test_the_sandbox_has_neither(user: Person, declare: Declare, worker: Worker[Any]) -> None:
    await declare("asks", "def handler(input_data, context):\n    return [context['secrets'], input('?')]\n")
    assert (await run(user, "asks"))["error"].startswith("RuntimeError: input() is not available in the sandbox")
    await declare("empty", "def handler(input_data, context):\n    return context['secrets']\n")
    assert (await run(user, "empty"))["result"] == {}


async def test_a_worker_that_is_killed_fails_who_waits_and_repeats_who_runs(
    admin: Person, share: Declare, worker: Worker[Any], tmp_path: Path
) -> None:
    await pool_of(worker).scale(1)
    await share("asks", ASK)
    code = (
        "import os, time\ndef handler(input_data, context):\n"
        "    while not os.path.exists(input_data['until']):\n        time.sleep(0.01)\n    return 'done'\n"
    )
    await share("lasts", code)
    go = tmp_path / "go"
    paused = (await run(admin, "asks"))["execution_id"]
    running = [await queue(admin, "lasts", {"until": str(go)}) for _ in range(2)]
    for execution_id in running:
        await until(admin, execution_id, "RUNNING")
    while pool_of(worker).workers()[0].running < 3:
        await asyncio.sleep(0.02)
    os.kill(pool_of(worker).workers()[0].pid, signal.SIGKILL)
    go.touch()
    row = await until(admin, paused, "FAILED")
    assert row["cause"] == "interrupted"
    assert row["error"] == "Interrupted after it had asked for input: its shared worker was killed by SIGKILL"
    for execution_id in running:
        row = await until(admin, execution_id, "COMPLETED")
        assert (row["output_data"], row["attempt"]) == ("done", 2)


@pytest.fixture
async def lost(runtime: Runtime, admin: Person, share: Declare) -> AsyncIterator[str]:
    """An execution that waits for input, and whose function worker is gone."""
    await share("asks", ASK)
    async with working(runtime, "gone"):
        execution_id = (await run(admin, "asks"))["execution_id"]
        await runtime.database.rows(text("UPDATE executions SET worker = 'killed', lease_until = now()"))
    yield execution_id


async def test_a_lost_function_worker_fails_who_waits(runtime: Runtime, admin: Person, lost: str) -> None:
    async with working(runtime, "next"):
        row = await until(admin, lost, "FAILED")
    assert (row["cause"], row["attempt"], row["prompt"]) == ("interrupted", 2, None)
    assert row["error"].startswith("Its worker was lost after it had asked for input")

"""Functions in the shared pool: warm, trusted, able to ask for secrets and a person's input, and still contained."""

import asyncio
import errno
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text

from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.functions.conftest import Declare, pool_of, queue, run, working
from tests.people import Person, make_person

ASK = "def handler(input_data, context):\n    return input('Your name?')\n"
SLEEP = "import time\ndef handler(input_data, context):\n    print('in')\n    time.sleep(60)\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_retry_delay": 0.0, "queue_max_retries": 1, "job_lease_seconds": 3})


async def test_globals_stay_warm_until_the_code_changes(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    code = "calls = []\ndef handler(input_data, context):\n    calls.append(1)\n    return len(calls)\n"
    await pool_of(worker).scale(1)
    await share("counts", code)
    assert [(await run(admin, "counts"))["result"] for _ in range(3)] == [1, 2, 3]
    await admin.http.put("/api/v1/functions/default/counts", json={"code": code.replace("len(calls)", "-len(calls)")})
    assert [(await run(admin, "counts"))["result"] for _ in range(2)] == [-1, -2]
    await share("other", code)
    assert (await run(admin, "other"))["result"] == 1, "each function has a module of its own"


async def test_workers_take_turns_and_run_several_at_once(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    await pool_of(worker).scale(2)
    await share("who", "import os\ndef handler(input_data, context):\n    return os.getpid()\n")
    await run(admin, "who")
    while len(pool_of(worker).workers()) < 2:
        await asyncio.sleep(0.02)
    assert len({(await run(admin, "who"))["result"] for _ in range(4)}) == 2
    await pool_of(worker).scale(1)
    meet = (
        "import threading\nbarrier = threading.Barrier(2)\n"
        "def handler(input_data, context):\n    print('for', input_data['who'])\n    barrier.wait(60)\n"
        "    print('still', input_data['who'])\n    return input_data['who']\n"
    )
    await share("meets", meet)
    answers = await asyncio.gather(*(run(admin, "meets", {"who": who}) for who in ("ann", "bob")))
    assert [answer["result"] for answer in answers] == ["ann", "bob"], "neither ends before the other is there"
    for answer, who in zip(answers, ("ann", "bob"), strict=True):
        row = (await admin.http.get(f"/executions/{answer['execution_id']}")).json()
        assert row["stdout"] == f"for {who}\nstill {who}\n", "each has what it printed itself"


async def test_only_those_who_may_have_trusted_code(
    runtime: Runtime, app: FastAPI, admin: Person, user: Person, declare: Declare, share: Declare, worker: Worker[Any]
) -> None:
    body = {"name": "mine", "code": ASK, "shared_pool": True}
    refused = await user.http.post("/api/v1/functions", json=body)
    assert (refused.status_code, "sinas.functions.shared_pool:all" in refused.text) == (403, True)
    await declare("sandboxed")
    assert (await user.http.put("/api/v1/functions/default/sandboxed", json={"shared_pool": True})).status_code == 403
    wrong = await admin.http.post("/api/v1/functions", json={**body, "egress": "none"})
    assert (wrong.status_code, "egress" in wrong.text) == (422, True)
    former = await make_person(runtime, app, ["Admins"])
    async with former.http:
        assert (await former.http.post("/api/v1/functions", json={**body, "code": "x"})).status_code == 201
        await admin.http.delete(f"/api/v1/roles/Admins/members/{former.id}")
        answer = await run(admin, "mine")
    assert answer["error"].startswith("Function 'default/mine' may not run as trusted code"), "the owner's right of now"


async def test_secrets_are_resolved_when_they_are_asked_for(
    admin: Person, user: Person, share: Declare, worker: Worker[Any]
) -> None:
    for http, value, visibility in ((admin.http, "shared", "shared"), (user.http, "mine", "private")):
        secret = {"name": "TOKEN", "value": value, "visibility": visibility}
        assert (await http.post("/api/v1/secrets", json=secret)).status_code == 201
    assert (await admin.http.post("/api/v1/secrets", json={"name": "OTHER", "value": "x"})).status_code == 201
    code = (
        "def handler(input_data, context):\n    secrets = context['secrets']\n"
        "    try: secrets['NONE']\n    except KeyError as error: missing = str(error)\n"
        "    return [secrets['TOKEN'], secrets['TOKEN'], secrets.get('NONE'), 'TOKEN' in secrets, 'NONE' in secrets,\n"
        "            sorted(secrets), missing, repr(secrets)]\n"
    )
    await share("uses", code)
    expected = [None, True, False, ["OTHER", "TOKEN"], "'NONE'", "<secrets>"]
    await allow(admin, "sinas.functions/default/uses.execute:all")
    mine, shared = await run(user, "uses"), await run(admin, "uses")
    assert mine["result"] == ["mine", "mine", *expected]
    assert shared["result"] == ["shared", "shared", *expected]
    entries = (await admin.http.get("/api/v1/audit", params={"action": "use", "target_kind": "secret"})).json()
    assert [(entry["actor"], entry["target"], entry["via"], entry["detail"]) for entry in entries] == [
        (
            person.email,
            "TOKEN",
            "function",
            {"visibility": visibility, "execution_id": answer["execution_id"], "function": "default/uses"},
        )
        for person, answer, visibility in ((admin, shared, "shared"), (user, mine, "private"))
    ], "once for each execution, and nothing for what was not asked"


async def allow(admin: Person, key: str) -> None:
    body = {"permission_key": key, "permission_value": True}
    assert (await admin.http.post("/api/v1/roles/Users/permissions", json=body)).status_code == 200


async def test_the_token_has_the_callers_rights_and_reaches_the_platform(
    admin: Person, user: Person, share: Declare, worker: Worker[Any]
) -> None:
    code = (
        "import json, os, urllib.error, urllib.request\n"
        "def get(context, path):\n"
        "    headers = {'Authorization': 'Bearer ' + context['access_token']}\n"
        "    request = urllib.request.Request(os.environ['SINAS_URL'] + path, headers=headers)\n"
        "    try:\n        return json.load(urllib.request.urlopen(request))\n"
        "    except urllib.error.HTTPError as error:\n        return error.code\n"
        "def handler(input_data, context):\n"
        "    me = get(context, '/auth/me')\n"
        "    return [me['email'], get(context, '/api/v1/secrets'), get(context, '/api/v1/secrets/X')]\n"
    )
    await share("calls", code)
    await allow(admin, "sinas.functions/default/calls.execute:all")
    assert (await run(user, "calls"))["result"] == [user.email, [], 404]


async def test_the_process_has_none_of_the_platforms_secrets(
    admin: Person, share: Declare, worker: Worker[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "very-secret")
    code = (
        "import os\ndef read(path):\n    try: return open(path).read()\n"
        "    except OSError as error: return error.errno\n"
        "def handler(input_data, context):\n"
        "    return [sorted(os.environ), read(f'/proc/{os.getppid()}/environ'), read(input_data['path'])]\n"
    )
    await share("looks", code)
    found = (await run(admin, "looks", {"path": __file__}))["result"]
    assert found == [["HOME", "LANG", "PATH", "SINAS_URL", "TMPDIR"], errno.EACCES, errno.EACCES]


async def test_failures_look_as_in_the_sandbox(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    code = (
        "class Odd(Exception): pass\ndef handler(input_data, context):\n    print('before')\n    raise Odd('no luck')\n"
    )
    await share("fails", code)
    answer = await run(admin, "fails")
    assert (answer["status"], answer["error"]) == ("error", "Odd: no luck")
    row = (await admin.http.get(f"/executions/{answer['execution_id']}")).json()
    assert (row["stdout"], row["cause"]) == ("before\n", "error")
    assert row["traceback"].splitlines()[1] == '  File "default/fails.py", line 4, in handler'


async def test_a_loop_is_stopped_at_its_time_limit(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    await share("loops", "def handler(input_data, context):\n    print('in')\n    while True: pass\n", timeout=1)
    await pool_of(worker).scale(1)
    answer = await run(admin, "loops")
    assert (answer["status"], answer["error"]) == (
        "timeout",
        "Time limit exceeded: 1 seconds (the function's own timeout)",
    )
    while pool_of(worker).workers()[0].running:  # the answer does not wait for the thread's end
        await asyncio.sleep(0.02)
    assert [state.draining for state in pool_of(worker).workers()] == [False], "it goes on"


async def test_what_does_not_stop_has_its_worker_replaced(
    admin: Person, share: Declare, runtime: Runtime, port: int
) -> None:
    await share("sleeps", SLEEP)
    await share("works", "def handler(input_data, context):\n    return 1\n")
    async with working(runtime, port=port, stop_seconds=1.0) as worker:
        pool = pool_of(worker)
        await pool.scale(1)
        execution_id = await queue(admin, "sleeps")
        while not (await admin.http.get(f"/executions/{execution_id}/logs")).json()["stdout"]:
            continue  # what is stopped before it sleeps does stop
        [old] = pool.workers()
        assert (await admin.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
        while [state.pid for state in pool.workers()] in ([], [old.pid]) or len(pool.workers()) > 1:
            await asyncio.sleep(0.05)
        assert (await run(admin, "works"))["result"] == 1


async def test_what_kills_its_worker_is_given_up(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    await share("kills", "import os\ndef handler(input_data, context):\n    os._exit(3)\n")
    await share("works", "def handler(input_data, context):\n    return 1\n")
    answer = await run(admin, "kills")
    assert answer["error"] == "Gave up: 6 workers were lost while running it"
    assert (await run(admin, "works"))["result"] == 1


async def test_a_worker_that_grows_too_large_is_replaced(
    admin: Person, share: Declare, runtime: Runtime, port: int
) -> None:
    await share(
        "grows",
        "import os\nkept = []\ndef handler(input_data, context):\n"
        "    kept.append(b'x' * (300 << 20))\n    return os.getpid()\n",
    )
    async with working(runtime, port=port, memory_bytes=200 << 20) as worker:
        await pool_of(worker).scale(1)
        old = (await run(admin, "grows"))["result"]
        while old in [state.pid for state in pool_of(worker).workers()]:
            await asyncio.sleep(0.05)
        assert (await run(admin, "grows"))["result"] not in (None, old)


async def test_threads_and_async_code_print_to_their_execution(
    admin: Person, share: Declare, worker: Worker[Any]
) -> None:
    code = (
        "import asyncio, logging, sys, threading\n"
        "async def handler(input_data, context):\n"
        "    thread = threading.Thread(target=print, args=('thread', input_data['who']))\n"
        "    thread.start(); thread.join()\n"
        "    await asyncio.to_thread(print, 'to_thread', input_data['who'])\n"
        "    sys.stdout.buffer.write(b'bytes\\n')\n"
        "    print('warned', file=sys.stderr)\n"
        "    return 1\n"
    )
    await share("prints", code)
    answers = await asyncio.gather(*(run(admin, "prints", {"who": who}) for who in "ab"))
    for answer, who in zip(answers, "ab", strict=True):
        row = (await admin.http.get(f"/executions/{answer['execution_id']}")).json()
        assert row["stdout"] == f"thread {who}\nto_thread {who}\nbytes\n"
        assert row["stderr"] == "warned\n"


async def test_output_is_capped(admin: Person, share: Declare, worker: Worker[Any]) -> None:
    await share("floods", "def handler(input_data, context):\n    print('x' * (3 << 20))\n    return 'still'\n")
    answer = await run(admin, "floods")
    row = (await admin.http.get(f"/executions/{answer['execution_id']}")).json()
    assert row["stdout"].endswith("[output truncated at 1048576 bytes]\n")
    assert row["output_data"] == "still"


async def test_rows_say_where_they_were_to_run(
    admin: Person, share: Declare, declare: Declare, runtime: Runtime
) -> None:
    await share("shared", ASK)
    await declare("sandboxed")
    for name in ("shared", "sandboxed"):
        await queue(admin, name)
    rows = await runtime.database.rows(text(f"SELECT name, shared_pool FROM {ExecutionRow.__tablename__}"))  # noqa: S608 - our own table
    assert {row.name: row.shared_pool for row in rows} == {"shared": True, "sandboxed": False}

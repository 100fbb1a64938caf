"""Code that is no stored function: run, recorded, found again, canceled and limited like any execution."""

import asyncio
import base64
import dataclasses
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from sinas_server.functions.code import Code, run_code, start_code
from sinas_server.functions.tables import ExecutionRow, Status
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.heartbeat import beating
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import CallIdentity
from tests.functions.conftest import until
from tests.people import Person


async def caller(runtime: Runtime, person: Person) -> Caller:
    return await act_for(runtime, Principal(person.id), "session")


def identity() -> CallIdentity:
    return CallIdentity(uuid4(), uuid4(), 1, 0, "call_0")


async def recorded(runtime: Runtime) -> int:
    [(count,)] = await runtime.database.read(select(func.count()).select_from(ExecutionRow))
    return int(count)


async def test_code_is_an_execution_that_its_user_finds(runtime: Runtime, user: Person, worker: Worker[Any]) -> None:
    code = Code(
        source="print('read', open('in.txt').read())\nsum(numbers)",
        variables={"numbers": [1, 2, 3]},
        files={"in.txt": base64.b64encode(b"this").decode()},
    )
    row = await run_code(runtime, await caller(runtime, user), code)
    assert (row.status, row.output_data, row.stdout, row.error) == (Status.COMPLETED, 6, "read this\n", None)
    shown = (await user.http.get(f"/executions/{row.id}")).json()
    assert (shown["function_name"], shown["trigger_type"]) == ("system/codeExecution", "API")
    assert shown["input_data"]["code"] == code.source
    listed = (await user.http.get("/executions", params={"function_name": "system/codeExecution"})).json()
    assert [each["id"] for each in listed] == [str(row.id)]


async def test_another_user_does_not_find_it(
    runtime: Runtime, user: Person, guest: Person, worker: Worker[Any]
) -> None:
    row = await run_code(runtime, await caller(runtime, user), Code(source="1"))
    assert (await guest.http.get(f"/executions/{row.id}")).status_code in (403, 404)


async def test_a_failure_tells_the_line(runtime: Runtime, user: Person, worker: Worker[Any]) -> None:
    row = await run_code(runtime, await caller(runtime, user), Code(source="x = 1\nx / 0"))
    assert (row.status, row.cause, row.error) == (Status.FAILED, "error", "ZeroDivisionError: division by zero")
    assert row.traceback is not None
    assert "line 2" in row.traceback


async def test_its_own_time_limit(runtime: Runtime, user: Person, worker: Worker[Any]) -> None:
    as_user = await caller(runtime, user)
    row = await run_code(runtime, as_user, Code(source="while True: pass", timeout=1))
    assert (row.cause, row.error) == ("timeout", "Time limit exceeded: 1 seconds (the request's timeout)")
    row = await run_code(runtime, as_user, Code(source="1", timeout=1_000_000))
    assert (row.timeout, row.timeout_from) == (runtime.settings.code_execution_timeout, "code")


async def test_the_same_call_is_run_once(runtime: Runtime, user: Person, worker: Worker[Any]) -> None:
    as_user, call = await caller(runtime, user), identity()
    code = Code(source="import random\nrandom.random()")
    rows = await asyncio.gather(*(run_code(runtime, as_user, code, call) for _ in range(3)))
    again = await run_code(runtime, as_user, code, call)
    assert {row.id for row in rows} == {again.id}
    assert {row.output_data for row in (*rows, again)} == {again.output_data}
    assert (again.trigger_type, again.tool_call_id, again.chat_id) == ("AGENT", "call_0", call.chat_id)
    assert await recorded(runtime) == 1


async def test_it_can_be_canceled(runtime: Runtime, user: Person, worker: Worker[Any]) -> None:
    execution_id = await start_code(runtime, await caller(runtime, user), Code(source="import time\ntime.sleep(60)"))
    await until(user, str(execution_id), "RUNNING")
    assert (await user.http.post(f"/executions/{execution_id}/cancel")).status_code == 200
    assert (await until(user, str(execution_id), "CANCELLED"))["error"] == "Canceled"


async def test_it_gets_no_token_and_no_secret(runtime: Runtime, user: Person, worker: Worker[Any]) -> None:
    code = Code(source="import os\n[sorted(k for k in globals() if not k.startswith('__')), sorted(os.environ)]")
    row = await run_code(runtime, await caller(runtime, user), code)
    assert row.output_data == [
        ["os"],
        ["HOME", "LANG", "OPENBLAS_NUM_THREADS", "PATH", "SINAS_URL", "TMPDIR"],
    ]


async def test_what_it_may_reach_can_be_less(runtime: Runtime, user: Person, worker: Worker[Any]) -> None:
    source = "import urllib.request\nurllib.request.urlopen('http://example.com', timeout=5)"
    row = await run_code(runtime, await caller(runtime, user), Code(source=source, egress="none"))
    assert "this function's egress is `none`" in (row.error or "")


@pytest.mark.parametrize(
    ("code", "place"),
    [
        (Code(source="def ("), "code"),
        (Code(source="x\x00"), "code"),
        (Code(source="#" * 1_000_001), "code"),
        (Code(source="1", variables={"not a name": 1}), "variables"),
        (Code(source="1", variables={"x": "\x00"}), "variables"),
        (Code(source="1", files={"/etc/x": ""}), "files"),
        (Code(source="1", files={"a/../../x": ""}), "files"),
        (Code(source="1", files={"x": "no base64!"}), "files"),
    ],
)
async def test_what_cannot_be_run_is_refused(runtime: Runtime, user: Person, code: Code, place: str) -> None:
    with pytest.raises(InvalidError) as refused:
        await start_code(runtime, await caller(runtime, user), code)
    assert refused.value.problems[0][0][0] == place
    assert await recorded(runtime) == 0


async def test_info_says_whether_code_can_be_run(runtime: Runtime, user: Person) -> None:
    async def says() -> bool:
        return bool((await user.http.get("/info")).json()["features"]["code_execution"])

    assert await says() is False
    async with beating(dataclasses.replace(runtime, worker_name="functions-0"), "functions"):
        while not await says():
            await asyncio.sleep(0.05)
    assert await says() is False

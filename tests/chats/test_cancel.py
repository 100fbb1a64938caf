"""What agents run in sandboxes: code of the model, and functions, which end with the turn that called them."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import JsonValue
from sqlalchemy import func, select, update

from sinas_server.chats.expiry import EXPIRY_LOOP
from sinas_server.chats.tables import ChatRow
from sinas_server.chats.tools import SystemTools
from sinas_server.functions.tables import ExecutionRow
from sinas_server.functions.tools import FunctionTools
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Declare, Json, open_chat, stream, text_of
from tests.functions.conftest import working as functions_working
from tests.people import Person

RULES: list[Json] = [
    {"when": {"contains": "go"}, "call": [{"tool": "default/sleeps"}]},
    {"when": {"after_tool": "default/sleeps"}, "answer": "{{ results['default/sleeps'] }}"},
]
CODE = "import time\ndef handler(input_data, context):\n    time.sleep(300)\n"


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(FunctionTools(), SystemTools()))


@pytest.fixture
async def functions(runtime: Runtime) -> AsyncIterator[Worker[Any]]:
    async with functions_working(runtime) as worker:
        yield worker


async def sleeping(
    runtime: Runtime, admin: Person, user: Person, declare: Declare, chat: Json | None = None, **fields: JsonValue
) -> tuple[str, "asyncio.Task[Any]"]:
    """A chat whose agent waits for a function that sleeps."""
    body = {"name": "sleeps", "code": CODE, "input_schema": {}, "output_schema": {}}
    assert (await admin.http.post("/api/v1/functions", json=body)).status_code == 201
    agent = await declare("sleeper", RULES, enabled_functions=["sleeps"], **fields)
    chat_id = await open_chat(user, agent, **(chat or {}))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    begun = select(ExecutionRow.id).where(ExecutionRow.started_at.is_not(None))
    while not (streaming.done() or await runtime.database.rows(begun)):  # where time is short, it may end before
        await asyncio.sleep(0.02)
    return chat_id, streaming


async def gone(runtime: Runtime, functions: Worker[Any]) -> None:
    """Waits until the worker has killed it."""
    while functions.running:
        await asyncio.sleep(0.02)
    [row] = await runtime.database.rows(select(ExecutionRow.status))
    assert row.status == "CANCELLED"


async def test_a_stop_kills_it(
    runtime: Runtime, admin: Person, user: Person, declare: Declare, worker: None, functions: Worker[Any]
) -> None:
    chat_id, streaming = await sleeping(runtime, admin, user, declare)
    assert (await user.http.post(f"/chats/{chat_id}/stop")).json() == {"status": "stopped", "withdrawn": 0}
    assert (await streaming)[-1].data["status"] == "cancelled"
    await gone(runtime, functions)


async def test_deleting_the_chat_kills_it(
    runtime: Runtime, admin: Person, user: Person, declare: Declare, worker: None, functions: Worker[Any]
) -> None:
    chat_id, streaming = await sleeping(runtime, admin, user, declare)
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    assert (await streaming)[-1].name == "error"
    await gone(runtime, functions)


async def test_the_end_of_the_chats_time_kills_it(
    runtime: Runtime, admin: Person, user: Person, declare: Declare, worker: None, functions: Worker[Any]
) -> None:
    _, streaming = await sleeping(runtime, admin, user, declare, {"expires_in": 3600})
    await runtime.database.rows(update(ChatRow).values(expires_at=func.now()))
    await EXPIRY_LOOP.step(runtime)
    await gone(runtime, functions)
    assert (await streaming)[-1].name == "error"


async def test_the_turns_time_limit_kills_it(
    runtime: Runtime, admin: Person, user: Person, declare: Declare, worker: None, functions: Worker[Any]
) -> None:
    _, streaming = await sleeping(runtime, admin, user, declare, {"job_timeout": 6})
    assert "longer than 6 seconds" in (await streaming)[-1].data["error"]
    await gone(runtime, functions)


async def test_the_calls_time_limit_kills_it_and_the_agent_goes_on(
    runtime: Runtime, admin: Person, user: Person, declare: Declare, worker: None, functions: Worker[Any]
) -> None:
    _, streaming = await sleeping(runtime, admin, user, declare, tool_timeouts={"default/sleeps": 6})
    assert (await streaming)[-1].data["status"] == "completed"
    await gone(runtime, functions)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("print(n)\nn * 2", {"result": 42, "stdout": "21\n"}),
        ("raise ValueError('no')", {"error": "ValueError: no", "stdout": ""}),
        ("def (", None),
    ],
)
async def test_code_of_the_model_runs_in_a_sandbox(
    user: Person, declare: Declare, worker: None, functions: Worker[Any], code: str, told: Json | None
) -> None:
    call: Json = {"tool": "codeExecution", "arguments": {"code": code, "variables": {"n": 21}}}
    rules: list[Json] = [
        {"when": {"contains": "go"}, "call": [call]},
        {"when": {"after_tool": "codeExecution"}, "answer": "Ran."},
    ]
    agent = await declare("coder", rules, system_tools=["codeExecution"])
    events = await stream(user, await open_chat(user, agent), "go")
    [result] = [event.data["result"] for event in events if event.name == "tool_end"]
    if told is None:
        assert result.startswith("Error: code: ")
    else:
        assert json.loads(result).items() >= told.items()
    assert text_of(events) == "Ran."

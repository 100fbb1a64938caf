"""Functions as tools of agents: which there are, what the model sees, and one execution per call."""

import asyncio
import dataclasses
import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, update

from sinas_server.chats.prepare import lender
from sinas_server.functions.tables import ExecutionRow
from sinas_server.functions.tools import FunctionTools
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.identity.tables import UserRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult, Wait, Waiting, tool_name
from tests.functions.conftest import ECHO, Declare, Json, until, working
from tests.people import Person

SCHEMA: Json = {
    "type": "object",
    "properties": {
        "order": {"type": "string", "description": "Its number."},
        "shop": {"type": "string"},
        "limit": {"type": "integer"},
    },
    "required": ["order", "shop", "limit"],
    "additionalProperties": False,
}


@dataclasses.dataclass(frozen=True)
class Agent:
    """An agent of somebody, who may be gone."""

    owner: UUID | None
    context: AgentContext


def agent(owner: UUID | None, *functions: str, parameters: Json | None = None, given: Json | None = None) -> Agent:
    enabled: Json = {"enabled_functions": list(functions), "function_parameters": parameters or {}}
    return Agent(owner, AgentContext(uuid4(), None, enabled, given or {}))


def identity() -> CallIdentity:
    return CallIdentity(uuid4(), uuid4(), 1, 0, "call_0")


async def tools(runtime: Runtime, person: Person, agent: Agent) -> list[Tool]:
    owner = await lender(runtime, agent.owner)
    context = dataclasses.replace(agent.context, owner=owner)
    return await FunctionTools().get_tools(runtime, await caller(runtime, person), context)


async def use(runtime: Runtime, me: Caller, tool: Tool, given: Json, call: CallIdentity) -> ToolResult:
    """The result of a call that does not wait."""
    result = await FunctionTools().call_tool(runtime, me, tool, given, call)
    assert isinstance(result, ToolResult)
    return result


async def caller(runtime: Runtime, person: Person) -> Caller:
    return await act_for(runtime, Principal(person.id), "session")


async def test_the_model_sees_the_schema_without_what_is_locked(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("lookup-order", description="Finds an order.", input_schema=SCHEMA, requires_approval=True)
    parameters = {"default/lookup-order": {"shop": {"value": "{{ shop }}", "locked": True}, "limit": "{{ most }}"}}
    [tool] = await tools(
        runtime, user, agent(user.id, "default/lookup-order", parameters=parameters, given={"shop": "main", "most": 5})
    )
    assert (tool.name, tool.description, tool.requires_approval) == ("default__lookup-order", "Finds an order.", True)
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "order": {"type": "string", "description": "Its number."},
            "limit": {"type": "integer", "default": 5},
        },
        "required": ["order"],
        "additionalProperties": False,
    }
    assert (tool.locked, tool.defaults) == ({"shop": "main"}, {"limit": 5})


async def test_a_value_that_cannot_be_made_is_the_fault_of_the_tool(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("f", input_schema=SCHEMA)
    await declare("g")
    locked = {"default/f": {"shop": {"value": "{{ missing }}", "locked": True}}}
    broken, whole = await tools(runtime, user, agent(user.id, "default/f", "default/g", parameters=locked))
    assert (broken.target, whole.target, whole.fault) == ("default/f", "default/g", None)
    assert "'missing' is undefined" in (broken.fault or "")


async def test_the_right_of_the_agents_owner_counts(
    runtime: Runtime, user: Person, admin: Person, guest: Person, declare: Declare
) -> None:
    await declare("mine")
    await declare("theirs", by=admin.http)
    await declare("off", is_active=False)
    names = ("default/mine", "theirs", "default/off", "default/none", "default/mine")
    assert [tool.target for tool in await tools(runtime, guest, agent(user.id, *names))] == ["default/mine"]
    of_admin = await tools(runtime, guest, agent(admin.id, *names))
    assert [tool.target for tool in of_admin] == ["default/mine", "default/theirs"]
    assert await tools(runtime, user, agent(guest.id, *names)) == []
    assert await tools(runtime, user, agent(None, *names)) == []
    assert await tools(runtime, user, agent(uuid4(), *names)) == []
    await runtime.database.rows(update(UserRow).where(UserRow.id == user.id).values(is_active=False))
    assert await tools(runtime, guest, agent(user.id, *names)) == []


def test_names_fit_every_provider_and_stay_apart() -> None:
    long = tool_name("a" * 40, "b" * 40)
    assert len(long) == 64
    assert long != tool_name("a" * 40, "b" * 39 + "c")
    assert tool_name("orders", "look-up") == "orders__look-up"
    assert tool_name("a b", "c") != tool_name("a_b", "c")
    pairs = [("a", "_b"), ("a_", "b"), ("a__b", "c"), ("a", "b__c")]
    assert len({tool_name(*pair) for pair in pairs}) == len(pairs)


async def test_a_call_runs_for_the_caller_with_what_the_agent_fixed(
    runtime: Runtime, user: Person, guest: Person, declare: Declare, worker: Worker[Any]
) -> None:
    code = "def handler(input_data, context):\n    return {'given': input_data, 'context': context}\n"
    await declare("f", code)
    fixed = {"default/f": {"shop": {"value": "main", "locked": True}, "limit": 5}}
    [tool] = await tools(runtime, guest, agent(user.id, "default/f", parameters=fixed))
    call = identity()
    for_guest = await caller(runtime, guest)
    result = await use(runtime, for_guest, tool, {"order": "7", "shop": "other"}, call)
    answer = json.loads(result.content)
    assert answer["given"] == {"order": "7", "shop": "main", "limit": 5}
    context = answer["context"]
    assert (context["user_id"], context["trigger_type"], context["chat_id"]) == (
        str(guest.id),
        "AGENT",
        str(call.chat_id),
    )
    [row] = await runtime.database.rows(select(ExecutionRow))
    assert (row.tool_call_id, row.turn_id, row.user_id, row.max_retries) == ("call_0", call.turn_id, guest.id, None)


async def test_a_value_that_cannot_be_made_stops_the_calls_only(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("f")
    for value, reason in (
        ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "longer than"),
        ("{{ a }}", "undefined"),
    ):
        fixed = {"default/f": {"limit": value, "shop": "main"}}
        [tool] = await tools(runtime, user, agent(user.id, "default/f", parameters=fixed))
        assert reason in (tool.fault or "")


async def test_the_same_call_is_one_execution_and_others_are_not(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("f", "import uuid\ndef handler(input_data, context):\n    return str(uuid.uuid4())\n")
    [tool] = await tools(runtime, user, agent(user.id, "default/f"))
    me, call = await caller(runtime, user), identity()

    async def ask(which: CallIdentity) -> str:
        return (await use(runtime, me, tool, {}, which)).content

    same = await asyncio.gather(*(ask(call) for _ in range(4)))
    same += [await ask(dataclasses.replace(call, tool_call_id="call_9"))]
    assert len(set(same)) == 1
    others = {await ask(dataclasses.replace(call, step=2)), await ask(dataclasses.replace(call, index=1))}
    assert len({*same, *others, await ask(identity())}) == 4
    [count] = await runtime.database.rows(select(func.count()).select_from(ExecutionRow))
    assert count[0] == 4


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ValueError('no such order')", "Error: ValueError: no such order"),
        ("return 'text\\n'", "text\n"),
        ("return None", "null"),
        ("return {'a': [1]}", '{"a":[1]}'),
    ],
)
async def test_what_the_model_is_told(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any], code: str, told: str
) -> None:
    await declare("f", f"def handler(input_data, context):\n    {code}\n")
    [tool] = await tools(runtime, user, agent(user.id, "default/f"))
    result = await use(runtime, await caller(runtime, user), tool, {}, identity())
    assert (result.content, result.is_error) == (told, told.startswith("Error"))


async def test_wrong_arguments_and_vanished_functions_are_told_too(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("f", ECHO, input_schema=SCHEMA)
    [tool] = await tools(runtime, user, agent(user.id, "default/f"))
    me = await caller(runtime, user)
    wrong = await use(runtime, me, tool, {"order": 7, "shop": "s", "limit": 1}, identity())
    assert wrong.is_error
    assert "arguments.order" in wrong.content
    await user.http.delete("/api/v1/functions/default/f")
    gone = await use(runtime, me, tool, {}, identity())
    assert (gone.is_error, "does not exist any more" in gone.content) == (True, True)


async def test_a_call_whose_worker_was_lost_is_told_as_unknown(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    await declare("sleeps", "import time\ndef handler(input_data, context):\n    time.sleep(60)\n")
    [tool] = await tools(runtime, user, agent(user.id, "default/sleeps"))
    me, call = await caller(runtime, user), identity()
    asked = asyncio.create_task(use(runtime, me, tool, {}, call))
    async with working(runtime, "first"):
        while not (
            rows := await runtime.database.rows(select(ExecutionRow).where(ExecutionRow.started_at.is_not(None)))
        ):
            await asyncio.sleep(0.02)
    async with working(runtime, "second"):
        await until(user, str(rows[0].id), "FAILED")
        result = await asked
    assert result.is_error
    assert "outcome unknown" in result.content
    assert await use(runtime, me, tool, {}, call) == result


async def test_a_call_waits_for_the_input_that_its_function_asks_for(
    runtime: Runtime, admin: Person, declare: Declare, worker: Worker[Any]
) -> None:
    code = "def handler(input_data, context):\n    return input('Sure?') + input('Really?')\n"
    await declare("asks", code, admin.http, shared_pool=True)
    [tool] = await tools(runtime, admin, agent(admin.id, "default/asks"))
    me, call = await caller(runtime, admin), identity()
    for question, answer in (("Sure?", "yes"), ("Really?", "!")):
        for _ in range(2):  # also after a crash
            assert await FunctionTools().call_tool(runtime, me, tool, {}, call) == Waiting(Wait.INPUT, question)
        [row] = await runtime.database.rows(select(ExecutionRow))
        went_on = await admin.http.post(f"/executions/{row.id}/continue", json={"input": answer})
        assert went_on.status_code == 200
    assert await use(runtime, me, tool, {}, call) == ToolResult("yes!")

"""`packageManagement`: an agent lists, approves and withdraws packages with the rights of who talks to it."""

import dataclasses
import json
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue
from sqlalchemy import func, select

from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.dependencies.tools import PackageTools
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel.errors import ForbiddenError, InvalidError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult
from tests.chats.conftest import Declare, Json, open_chat, reread, stream, text_of
from tests.people import Person

IDENTITY = CallIdentity(uuid4(), uuid4(), 0, 0, "call_0")
RULES: list[Json] = [
    {
        "when": {"contains": "pandas"},
        "call": [{"tool": "packageManagement_approve", "arguments": {"package_name": "Pandas", "version": ">=2"}}],
    },
    {
        "when": {"after_tool": "packageManagement_approve"},
        "answer": "It said {{ results.packageManagement_approve }}",
    },
]


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(PackageTools(),))


async def offered(runtime: Runtime, principal: Principal, *enabled: JsonValue) -> dict[str, Tool]:
    """The tools of an agent with these `system_tools`, by what they do."""
    caller = await act_for(runtime, principal, "session")
    context = AgentContext(uuid4(), None, {"system_tools": list(enabled)}, {})
    return {tool.target: tool for tool in await PackageTools().get_tools(runtime, caller, context)}


async def use(runtime: Runtime, person: Person, tool: Tool, **arguments: JsonValue) -> Any:  # noqa: ANN401 - any JSON
    caller = await act_for(runtime, Principal(person.id), "session")
    result = await PackageTools().call_tool(runtime, caller, tool, arguments, IDENTITY)
    assert isinstance(result, ToolResult)
    return result.content if result.is_error else json.loads(result.content)


async def test_the_tools_are_those_for_which_the_user_has_the_right(
    runtime: Runtime, admin: Person, user: Person
) -> None:
    assert await offered(runtime, Principal(admin.id), "askUser", "packages") == {}
    tools = await offered(runtime, Principal(admin.id), {"name": "packageManagement"})
    assert {target: tool.requires_approval for target, tool in tools.items()} == {
        "list": False,
        "approve": True,
        "withdraw": True,
    }
    assert await offered(runtime, Principal(user.id), "packageManagement") == {}
    for action in ("approve", "withdraw"):  # the right is gone by the time of the call
        with pytest.raises(ForbiddenError):
            await use(runtime, user, tools[action], package_name="iniconfig")
    assert (await admin.http.get("/api/v1/dependencies")).json() == []


async def test_what_they_do_can_be_done_twice(runtime: Runtime, admin: Person) -> None:
    tools = await offered(runtime, Principal(admin.id), "packageManagement")
    approved = {"package_name": "iniconfig", "version": "2.0.0", "approved": True}
    for _ in range(2):
        assert await use(runtime, admin, tools["approve"], package_name="IniConfig", version="2.0.0") == approved
    [shown] = await use(runtime, admin, tools["list"])
    assert (shown["package_name"], shown["version"], shown["status"]) == ("iniconfig", "2.0.0", "pending")
    [listed] = (await admin.http.get("/api/v1/dependencies")).json()
    assert (listed["package_name"], listed["installed_by"]) == ("iniconfig", str(admin.id))
    other = await use(runtime, admin, tools["approve"], package_name="iniconfig")
    assert other == "Error: it is approved as iniconfig==2.0.0: withdraw that first"
    for _ in range(2):
        assert await use(runtime, admin, tools["withdraw"], package_name="iniconfig") == {
            "package_name": "iniconfig",
            "approved": False,
        }
    assert await use(runtime, admin, tools["list"]) == []
    [sets] = await runtime.database.rows(select(func.count()).select_from(PackageSetRow))
    assert sets[0] == 2, "a set is asked for by each change, and by no repetition"


@pytest.mark.parametrize(
    "arguments", [{}, {"package_name": "not a name"}, {"package_name": "x", "version": "newest"}, {"package_name": 7}]
)
async def test_what_is_wrong_is_told(runtime: Runtime, admin: Person, arguments: dict[str, JsonValue]) -> None:
    tools = await offered(runtime, Principal(admin.id), "packageManagement")
    with pytest.raises(InvalidError):
        await use(runtime, admin, tools["approve"], **arguments)


async def test_nothing_is_approved_before_the_user_has_said_so(admin: Person, declare: Declare, worker: None) -> None:
    agent = await declare("installer", RULES, system_tools=["packageManagement"])
    chat_id = await open_chat(admin, agent)
    events = await stream(admin, chat_id, "I need pandas")
    [asked] = [event.data for event in events if event.name == "approval_required"]
    assert (await admin.http.get("/api/v1/dependencies")).json() == []
    path = f"/chats/{chat_id}/approve-tool/{asked['tool_call_id']}"
    told = (await admin.http.post(path, json={"approved": True})).json()
    assert "'approved': True" in text_of(await reread(admin, chat_id, told["channel_id"]))
    [listed] = (await admin.http.get("/api/v1/dependencies")).json()
    assert (listed["package_name"], listed["version"]) == ("pandas", ">=2")


async def test_whoever_may_not_has_no_such_tool(admin: Person, user: Person, declare: Declare, worker: None) -> None:
    agent = await declare("installer", RULES, system_tools=["packageManagement"])
    chat_id = await open_chat(user, agent)
    events = await stream(user, chat_id, "I need pandas")
    assert not [event for event in events if event.name == "approval_required"]
    [error] = [event.data["error"] for event in events if event.name == "error"]
    assert "it calls packageManagement_approve, which is not among the tools offered" in error
    assert (await admin.http.get("/api/v1/dependencies")).json() == []

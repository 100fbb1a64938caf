"""`configIntrospection`: what a model is shown of the configuration is what its user may see."""

import json
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue

from sinas_server.chats.tools import SystemTools
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel.errors import ForbiddenError, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import AgentContext, CallIdentity, ToolResult
from tests.people import Person

IDENTITY = CallIdentity(uuid4(), uuid4(), 0, 0, "call_0")


async def shown(runtime: Runtime, person: Person, **arguments: JsonValue) -> Any:  # noqa: ANN401 - any JSON
    """What the tool says."""
    caller = await act_for(runtime, Principal(person.id), "session")
    context = AgentContext(uuid4(), None, {"system_tools": ["configIntrospection", {"name": "nothing"}]}, {})
    [tool] = await SystemTools().get_tools(runtime, caller, context)
    result = await SystemTools().call_tool(runtime, caller, tool, arguments, IDENTITY)
    assert isinstance(result, ToolResult)
    return result.content if result.is_error else json.loads(result.content)


async def test_a_user_is_shown_what_he_may_see(runtime: Runtime, user: Person, admin: Person) -> None:
    for person, name in ((user, "mine"), (admin, "theirs")):
        body = {"name": name, "description": "Helps.", "content": "Do."}
        assert (await person.http.post("/api/v1/skills", json=body)).status_code == 201
    kinds = {one["resource"] for one in await shown(runtime, user)}
    assert {"skills", "agents", "functions"} <= kinds
    listed = await shown(runtime, user, resource="skills")
    assert listed == [{"namespace": "default", "name": "mine", "description": "Helps.", "is_active": True}]
    assert [one["name"] for one in await shown(runtime, admin, resource="skills")] == ["mine", "theirs"]
    assert await shown(runtime, user, resource="skills", namespace="other") == []
    assert (await shown(runtime, user, resource="skills", name="mine"))["content"] == "Do."
    with pytest.raises(ForbiddenError):
        await shown(runtime, user, resource="skills", name="theirs")
    with pytest.raises(NotFoundError):
        await shown(runtime, user, resource="skills", name="none")
    assert "must be one of" in await shown(runtime, user, resource="nonsense")


async def test_secrets_are_not_shown(runtime: Runtime, admin: Person) -> None:
    provider = {"name": "p", "provider_type": "openai", "api_key": "sk-very-secret"}
    assert (await admin.http.post("/api/v1/llm-providers", json=provider)).status_code == 201
    whole = await shown(runtime, admin, resource="llm_providers", name="p")
    assert whole["name"] == "p"
    assert "sk-very-secret" not in json.dumps(whole)

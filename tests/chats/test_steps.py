"""What is handed to the statements that write the steps of a turn."""

import json
from uuid import uuid4

from pydantic import JsonValue

from sinas_server.backends.llm import Answer, ToolCall
from sinas_server.chats.events import Call
from sinas_server.chats.steps import called
from sinas_server.chats.tables import CallStatus


def test_a_schema_may_hold_an_integer_of_any_size() -> None:
    tool: dict[str, JsonValue] = {"toolset": "functions", "target": "t/f", "parameters": {"maximum": 10**30}}
    call = Call(
        index=0,
        id="shown",
        name="f",
        arguments="{}",
        tool=tool,
        description="",
        status=CallStatus.PENDING,
        requires_approval=False,
        started_on=uuid4(),
    )
    (kept,) = json.loads(called([call], Answer("", (ToolCall("given", "f", "{}"),))))
    assert (kept["tool"], kept["tool_call_id"], kept["provider_call_id"]) == (tool, "shown", "given")
    assert kept["started_on"] == str(call.started_on)

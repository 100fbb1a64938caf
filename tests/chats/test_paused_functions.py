"""An agent calls a trusted function that asks for input: the user answers, in his chat or at the execution itself."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sinas_server.chats.delegate import AgentTools
from sinas_server.chats.waits import WAITS_LOOP
from sinas_server.functions.tools import FunctionTools
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Declare, Event, Json, get_chat, open_chat, reread, stream, text_of
from tests.chats.test_questions import call_of, pending
from tests.functions.conftest import working as functions_working
from tests.people import Person

CODE = (
    "def handler(input_data, context):\n"
    "    first = input('Which colour?')\n    return first + '/' + input('How many of ' + first + '?')\n"
)
RULES: list[Json] = [
    {"when": {"contains": "paint"}, "answer": "I ask.", "call": [{"tool": "default/asks"}]},
    {"when": {"after_tool": "default/asks"}, "answer": "Painted {{ results['default/asks'] }}"},
]


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(FunctionTools(), AgentTools()))


@pytest.fixture
async def functions(runtime: Runtime) -> AsyncIterator[Worker[Any]]:
    async with functions_working(runtime) as worker:
        yield worker


@pytest.fixture
async def painter(admin: Person, declare: Declare, worker: None, functions: Worker[Any]) -> str:
    """An agent with a function that asks twice."""
    body = {"name": "asks", "code": CODE, "input_schema": {}, "output_schema": {}, "shared_pool": True}
    assert (await admin.http.post("/api/v1/functions", json=body)).status_code == 201
    return await declare("painter", RULES, enabled_functions=["asks"])


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events if event.name != "message"]


async def execution(person: Person, chat_id: str) -> Json:
    found = (await person.http.get("/executions", params={"chat_id": chat_id})).json()
    assert len(found) == 1, "it is started once"
    return dict(found[0])


async def answer_of(runtime: Runtime, person: Person, chat_id: str) -> str:
    """What the agent says in the end, with the scheduler's look at what waits."""
    while (chat := await get_chat(person, chat_id))["last_turn"]["status"] != "COMPLETED":
        await WAITS_LOOP.step(runtime)
        await asyncio.sleep(0.02)
    return str(chat["messages"][-1]["content"])


async def test_the_user_answers_in_his_chat(user: Person, painter: str) -> None:
    chat_id = await open_chat(user, painter)
    events = await stream(user, chat_id, "paint")
    assert names(events) == ["tool_start", "input_required", "round_suspended", "done"]
    [question] = await pending(user, chat_id)
    assert (question["question"], question["tool_call_id"]) == ("Which colour?", call_of(events))
    assert (await execution(user, chat_id))["status"] == "AWAITING_INPUT"

    path = f"/chats/{chat_id}/pending-input/{question['tool_call_id']}"
    told = (await user.http.post(path, json={"answer": "red"})).json()
    assert told["resumed"] is True
    again = await reread(user, chat_id, told["channel_id"])
    assert names(again) == ["input_required", "round_suspended", "done"]
    assert [each["question"] for each in await pending(user, chat_id)] == ["How many of red?"]

    told = (await user.http.post(path, json={"answer": "7"})).json()
    went_on = await reread(user, chat_id, told["channel_id"])
    assert names(went_on) == ["tool_end", "done"]
    assert text_of(went_on) == "Painted red/7"
    assert await pending(user, chat_id) == []
    assert (await execution(user, chat_id))["status"] == "COMPLETED"
    assert (await user.http.post(path, json={"answer": "8"})).status_code == 409


async def test_the_user_answers_at_the_execution(runtime: Runtime, user: Person, painter: str) -> None:
    chat_id = await open_chat(user, painter)
    events = await stream(user, chat_id, "paint")
    execution_id = (await execution(user, chat_id))["execution_id"]
    for answer, status in (("blue", "AWAITING_INPUT"), ("2", "COMPLETED")):
        went_on = await user.http.post(f"/executions/{execution_id}/continue", json={"input": answer}, timeout=60)
        assert (went_on.status_code, went_on.json()["status"]) == (200, status)
    assert await answer_of(runtime, user, chat_id) == "Painted blue/2"
    late = await user.http.post(f"/chats/{chat_id}/pending-input/{call_of(events)}", json={"answer": "red"})
    assert late.status_code == 409


async def test_a_question_that_was_answered_at_the_execution_is_not_asked_any_more(
    runtime: Runtime, user: Person, painter: str
) -> None:
    chat_id = await open_chat(user, painter)
    events = await stream(user, chat_id, "paint")
    execution_id = (await execution(user, chat_id))["execution_id"]
    path = f"/chats/{chat_id}/pending-input/{call_of(events)}"
    went_on = await user.http.post(f"/executions/{execution_id}/continue", json={"input": "blue"}, timeout=60)
    assert went_on.json()["prompt"] == "How many of blue?"
    stale = await user.http.post(path, json={"answer": "red"})
    assert stale.status_code == 409, "this was said to another question"
    while (questions := await pending(user, chat_id)) == [] or questions[0]["question"] != "How many of blue?":
        await WAITS_LOOP.step(runtime)
        await asyncio.sleep(0.02)
    assert (await user.http.post(path, json={"answer": "2"})).status_code == 202
    assert await answer_of(runtime, user, chat_id) == "Painted blue/2"


async def test_a_called_agents_function_asks_in_the_users_chat(
    runtime: Runtime, user: Person, painter: str, declare: Declare
) -> None:
    tool = "call_agent_default__painter"
    rules: list[Json] = [
        {"when": {"contains": "house"}, "call": [{"tool": tool, "arguments": {"message": "paint"}}]},
        {"when": {"after_tool": tool}, "answer": "Done: {{ results." + tool + " }}"},
    ]
    chat_id = await open_chat(user, await declare("foreman", rules, enabled_agents=[painter]))
    assert "input_required" in names(await stream(user, chat_id, "house"))
    for answer in ("green", "3"):
        while not (questions := await pending(user, chat_id)):
            continue
        path = f"/chats/{chat_id}/pending-input/{questions[0]['tool_call_id']}"
        said = await user.http.post(path, json={"answer": answer}, timeout=60)
        assert said.status_code == 202, said.text
        while await pending(user, chat_id) == questions:
            continue
    assert "Painted green/3" in await answer_of(runtime, user, chat_id)

"""Hooks: functions that see what is said before it counts, run for real."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest
from sqlalchemy import select

from sinas_server.backends.llm import Answer, MediaPart, TextDelta, TextPart, ToolCall, UserMessage
from sinas_server.chats.late_hooks import apply_late_hooks
from sinas_server.chats.tables import LateHookRow, TurnRow
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import CountingTools, Declare, Json, get_chat, open_chat, reread, stream, text_of, working
from tests.chats.test_failures import Model, Script, with_model
from tests.chats.test_recovery import Breaker
from tests.functions.conftest import working as functions_working
from tests.media import PNG, data_url
from tests.people import Person

Hook = Callable[..., Awaitable[Json]]
UPPER = "{'content': message['content'].upper()}"


@pytest.fixture
async def functions(runtime: Runtime) -> AsyncIterator[None]:
    """A function worker with a sandbox."""
    async with functions_working(runtime):
        yield


@pytest.fixture
def hook(admin: Person) -> Hook:
    """Creates a function of the administrator that returns a Python expression over `message` and `given`."""

    async def create(name: str, returns: str, before: str = "pass", **more: object) -> Json:
        code = f"import json, time\ndef handler(given, context):\n    message = given['message']\n    {before}\n"
        body = {"name": name, "code": f"{code}    return {returns}\n", "input_schema": {}, "output_schema": {}}
        made = await admin.http.post("/api/v1/functions", json=body)
        assert made.status_code == 201, made.text
        return {"function": name, **more}

    return create


async def ran(runtime: Runtime) -> list[str]:
    """The functions that were run as hooks, in order."""
    query = select(ExecutionRow.name).where(ExecutionRow.trigger_type == "HOOK").order_by(ExecutionRow.created_at)
    return [row.name for row in await runtime.database.rows(query)]


async def contents(person: Person, chat_id: str) -> list[str]:
    return [message["content"] for message in (await get_chat(person, chat_id))["messages"]]


async def test_what_the_user_says_passes_them_in_order(
    user: Person, declare: Declare, hook: Hook, worker: None, functions: None, runtime: Runtime
) -> None:
    hooks = [await hook("all", "{'content': 'say ' + json.dumps(given)}"), await hook("none", "None")]
    hooks += [await hook("empty", "{}"), await hook("more", "{'content': message['content'] + ' <more>'}")]
    agent = await declare("plain", default="Noted.", hooks={"on_user_message": hooks})
    chat_id = await open_chat(user, agent)
    assert text_of(await stream(user, chat_id, "Hi")) == "Noted."
    said = (await contents(user, chat_id))[0]
    assert said.startswith("say ")
    assert said.endswith(" <more>")
    assert json.loads(said.removeprefix("say ").removesuffix(" <more>")) == {
        "message": {"role": "user", "content": "Hi"},
        "chat_id": chat_id,
        "agent": {"namespace": "default", "name": "plain"},
        "session_key": None,
        "user_id": str(user.id),
    }
    assert await ran(runtime) == ["all", "none", "empty", "more"]


async def test_the_model_hears_what_they_made_of_it_and_media_stay(
    user: Person, declare: Declare, hook: Hook, functions: None, runtime: Runtime
) -> None:
    agent = await declare("plain", hooks={"on_user_message": [await hook("upper", UPPER)]})
    chat_id = await open_chat(user, agent)
    model = Model([Answer("Ok")], [Answer("Ok")])
    pixel = data_url("image/png", PNG)
    async with working(with_model(runtime, model)):
        await stream(user, chat_id, "quiet")
        await stream(user, chat_id, [{"type": "text", "text": "look"}, {"type": "image", "image": pixel}])
    assert "QUIET" in str(model.requests[0].messages[-1])
    assert model.requests[1].messages[-1] == UserMessage(
        (TextPart("LOOK"), MediaPart("image", "image/png", data=PNG, size=len(PNG)))
    )


async def test_another_answer_asks_them_again_only_about_what_did_not_pass(
    user: Person, declare: Declare, hook: Hook, worker: None, functions: None, runtime: Runtime
) -> None:
    more = await hook("more", "{'content': message['content'] + '!'}")
    stop = await hook("stop", "{'block': 'bad' in message['content'], 'reply': 'Not here.'}")
    hooks = {"on_user_message": [more, stop], "on_assistant_message": [more]}
    chat_id = await open_chat(user, await declare("plain", default="Noted.", hooks=hooks))
    await stream(user, chat_id, "good")
    path = f"/chats/{chat_id}/messages"
    said = (await user.http.get(path)).json()[0]["id"]
    assert (await user.http.post(f"{path}/{said}/regenerate", timeout=60)).json()["content"] == "Noted.!"
    assert await contents(user, chat_id) == ["good!", "Noted.!"]
    assert await ran(runtime) == ["more", "stop", "more", "more"]
    edited = (await user.http.post(f"{path}/{said}/edit", json={"content": "bad"}, timeout=60)).json()
    blocked = (await user.http.post(f"{path}/{edited['id']}/regenerate", timeout=60)).json()
    assert (edited["content"], blocked["content"]) == ("Not here.", "Not here.")


async def test_one_that_blocks_answers_instead(
    user: Person, declare: Declare, hook: Hook, worker: None, functions: None, runtime: Runtime
) -> None:
    stop = await hook("stop", "{'block': True, 'reply': 'Not here.'}")
    later = await hook("later", UPPER)
    agent = await declare("plain", hooks={"on_user_message": [stop, later], "on_assistant_message": [later]})
    chat_id = await open_chat(user, agent)
    answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "Hi"})
    assert (answer.status_code, answer.json()["content"], answer.json()["status"]) == (200, "Not here.", "completed")
    assert await contents(user, chat_id) == ["Hi", "Not here."]
    assert await ran(runtime) == ["stop"]
    assert answer.json()["usage"] is None
    silent = await declare("silent", hooks={"on_assistant_message": [await hook("mute", "{'block': True}")]})
    events = await stream(user, await open_chat(user, silent), "Hi")
    assert [(e.name, e.data.get("content")) for e in events] == [
        ("message", "This message was blocked."),
        ("done", None),
    ]


async def test_nothing_of_an_answer_is_seen_before_it_has_passed(
    user: Person, declare: Declare, hook: Hook, functions: None, runtime: Runtime, tools: CountingTools
) -> None:
    hooks = {"on_assistant_message": [await hook("redact", "{'content': message['content'].replace('4711', '***')}")]}
    agent = await declare("plain", hooks=hooks, enabled_functions=["shop/look"])
    chat_id = await open_chat(user, agent)
    call = ToolCall("x", "shop__look", "{}")
    model = Model(
        [TextDelta("I try 4711"), Answer("I try 4711", (call,))],
        [TextDelta("It is "), TextDelta("4711"), Answer("It is 4711", native={"text": "4711"})],
        [Answer("Again")],
    )
    async with working(with_model(runtime, model)):
        events = await stream(user, chat_id, "go")
        await stream(user, chat_id, "and now?")
    assert [event.name for event in events] == ["tool_start", "tool_end", "message", "done"]
    assert events[2].data["content"] == "It is ***"
    chat = await get_chat(user, chat_id)
    assert "4711" not in json.dumps(chat)
    assert "4711" not in str(model.requests[2].messages)
    query = select(TurnRow.channel_id, TurnRow.usage).order_by(TurnRow.created_at)
    first = next(iter(await runtime.database.rows(query)))
    assert first.usage["calls"] == 2
    assert await reread(user, chat_id, str(first.channel_id)) == events


@pytest.mark.parametrize("trouble", ["slow", "raises", "returns nonsense", "is missing", "is not lent"])
async def test_one_without_a_result_passes_or_ends_the_turn(
    user: Person, admin: Person, declare: Declare, hook: Hook, worker: None, functions: None, trouble: str
) -> None:
    bad: Json = {"function": "missing"}
    if trouble == "slow":
        bad = await hook("slow", UPPER, "time.sleep(60)", timeout_seconds=0.3)
    elif trouble == "raises":
        bad = await hook("raises", UPPER, "raise ValueError('no')")
    elif trouble == "returns nonsense":
        bad = await hook("nonsense", "{'content': 5}")
    elif trouble == "is not lent":
        bad = await hook("idle", UPPER)
        assert (await admin.http.put("/api/v1/functions/default/idle", json={"is_active": False})).is_success
    hooks: Json = {"on_user_message": [bad], "on_assistant_message": [bad]}
    chat_id = await open_chat(user, await declare("passing", hooks=hooks))
    assert text_of(await stream(user, chat_id, "Hi")) == "Hello, I am the agent."
    for role in hooks:
        agent = await declare(role.replace("_", "-"), hooks={role: [{**bad, "on_timeout": "block"}]})
        events = await stream(user, await open_chat(user, agent), "Hi")
        assert [event.name for event in events] == ["error"]
        assert f"the hook 'default/{bad['function']}' must pass each message" in events[0].data["error"]
        if trouble == "slow":
            assert events[0].data["error"].endswith("longer than 0.3 seconds")


async def test_asynchronous_ones_delay_nothing_and_change_the_stored_answer_once(
    user: Person, declare: Declare, hook: Hook, worker: None, runtime: Runtime
) -> None:
    shout = await hook("shout", UPPER, **{"async": True})
    log = await hook("log", "None", **{"async": True})
    agent = await declare("plain", hooks={"on_user_message": [shout], "on_assistant_message": [shout, log]})
    chat_id = await open_chat(user, agent)
    events = await stream(user, chat_id, "Hi")  # no function worker is there
    assert text_of(events) == "Hello, I am the agent."
    assert await contents(user, chat_id) == ["Hi", "Hello, I am the agent."]
    assert sorted(await ran(runtime)) == ["log", "shout", "shout"]
    async with functions_working(runtime):
        while await runtime.database.rows(select(LateHookRow.execution_id)):
            await apply_late_hooks(runtime)
            await asyncio.sleep(0.02)
    assert await contents(user, chat_id) == ["Hi", "HELLO, I AM THE AGENT."]


async def test_a_summary_of_what_one_changes_later_is_forgotten(
    user: Person, declare: Declare, hook: Hook, runtime: Runtime
) -> None:
    few = dataclasses.replace(runtime, settings=runtime.settings.model_copy(update={"max_history_messages": 2}))
    shout = await hook("shout", UPPER, **{"async": True})
    agent = await declare("plain", hooks={"on_assistant_message": [shout]}, history_summary={})
    chat_id = await open_chat(user, agent)
    async with working(few):
        await stream(user, chat_id, "Hi")
        await stream(user, chat_id, "Hi again")
    path = f"/chats/{chat_id}/summaries"
    (summary,) = (await user.http.get(path)).json()
    assert summary["messages"] == 2
    async with functions_working(runtime):
        while await runtime.database.rows(select(LateHookRow.execution_id)):
            await apply_late_hooks(runtime)
            await asyncio.sleep(0.02)
    assert (await user.http.get(path)).json() == []


async def test_stopping_the_turn_stops_the_hook_it_waits_for(
    user: Person, declare: Declare, hook: Hook, worker: None, runtime: Runtime
) -> None:
    slow = await hook("slow", "None", "time.sleep(60)", timeout_seconds=60)
    logging = await hook("logging", "None", **{"async": True})
    chat_id = await open_chat(user, await declare("plain", hooks={"on_user_message": [logging, slow]}))
    sending = asyncio.create_task(user.http.post(f"/chats/{chat_id}/messages", json={"content": "Hi"}, timeout=30))
    while len(await ran(runtime)) < 2:
        await asyncio.sleep(0.01)
    assert (await user.http.post(f"/chats/{chat_id}/stop")).is_success
    assert (await sending).status_code == 409
    rows = await runtime.database.rows(select(ExecutionRow.name, ExecutionRow.status))
    assert {row.name: row.status for row in rows} == {"slow": "CANCELLED", "logging": "PENDING"}


async def test_each_runs_once_however_often_the_turn_is_taken_up(
    user: Person, declare: Declare, hook: Hook, functions: None, runtime: Runtime, tools: CountingTools
) -> None:
    late = await hook("late", "None", **{"async": True})
    stamp = await hook("stamp", "{'content': message['content'] + ' ' + str(time.time_ns())}")
    fields = {"on_user_message": [late, stamp], "on_assistant_message": [stamp, late]}
    agent = await declare("plain", hooks=cast(Json, fields))
    cut_at, passed = 0, 1
    while cut_at <= passed:
        before = len(await ran(runtime))
        breaker = Breaker(tools, cut_at or None)
        chat_id = await open_chat(user, agent)
        yes: Script = [TextDelta("Yes"), Answer("Yes")]
        model = Model(yes, yes)
        async with working(with_model(runtime, model), breaker.job()):
            events = await stream(user, chat_id, "Hi")
        said, answer = await contents(user, chat_id)
        assert len(await ran(runtime)) - before == 4, breaker.where
        assert said.startswith("Hi "), breaker.where
        assert text_of(events) == answer, breaker.where
        lost = ["restart"] if breaker.where == "before open" else []  # whether something was sent is not known
        assert [event.name for event in events] == [*lost, "message", "done"], breaker.where
        asked_again = cut_at and breaker.where == "before drafted"
        assert len(model.requests) == (2 if asked_again else 1), breaker.where
        passed = breaker.passed if not cut_at else passed
        cut_at += 1
    assert passed > 10

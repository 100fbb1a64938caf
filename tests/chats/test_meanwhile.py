"""What others do between two looks at the same thing."""

import asyncio
import dataclasses
from uuid import UUID

import pytest
from fastapi import Request
from pydantic import JsonValue
from sqlalchemy import select

from sinas_server.agents.kind import AgentSpec
from sinas_server.chats import approval, asked, invoke, send, waits
from sinas_server.chats.asked import Resumed, root_of
from sinas_server.chats.chat import Wanted, create_chat
from sinas_server.chats.delegate import AgentTools
from sinas_server.chats.tables import ChatRow, Status, ToolCallRow, TurnRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db
from tests.chats.busy import an_agent, in_a_call, waiting
from tests.chats.conftest import CountingTools, Declare, Json, get_chat, open_chat, reread, stream, text_of
from tests.chats.test_agents import DANGER, statuses, two
from tests.people import Person


@pytest.fixture
def runtime(runtime: Runtime, tools: CountingTools) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(AgentTools(), tools))


async def approve(person: Person, call: Json, **more: JsonValue) -> None:
    """A decision on what `GET /approvals` lists."""
    path = f"/approvals/{call['chat_id']}/{call['tool_call_id']}"
    answer = await person.http.post(path, json={"approved": True, **more})
    assert answer.status_code == 202, answer.text


async def ended(person: Person, chat_id: str) -> Json:
    """The chat once its last turn has completed."""
    async with asyncio.timeout(60):
        while (chat := await get_chat(person, chat_id))["last_turn"]["status"] != Status.COMPLETED:
            await asyncio.sleep(0.01)
    return chat


async def test_an_answer_does_not_tell_what_the_next_turn_asks(
    user: Person,
    declare: Declare,
    worker: None,
    runtime: Runtime,
    tools: CountingTools,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def and_the_next_one_asks(runtime: Runtime, turn_id: UUID, request: Request) -> TurnRow:
        turn = await send.finished(runtime, turn_id, request)
        while Status.SUSPENDED not in await statuses(runtime):
            await asyncio.sleep(0.01)
        return turn

    monkeypatch.setattr("sinas_server.chats.routes.finished", and_the_next_one_asks)
    tools.hold = asyncio.Event()
    chat_id = await open_chat(user, await an_agent(declare))
    body = {"content": "look"}
    sent = asyncio.create_task(user.http.post(f"/chats/{chat_id}/messages", json=body, timeout=60))
    await in_a_call(tools)
    following = await waiting(user, chat_id, "danger", 1)
    tools.let_go()
    answer = (await sent).json()
    assert (answer["content"], answer["status"], answer["pending_approvals"]) == ("Seen.", "completed", [])
    assert (await following)[-1].data["status"] == "suspended"


async def test_an_answer_does_not_ask_for_what_was_decided_elsewhere(
    user: Person, declare: Declare, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def and_it_is_decided(runtime: Runtime, turn_id: UUID, request: Request) -> TurnRow:
        turn = await send.finished(runtime, turn_id, request)
        [call] = (await user.http.get("/approvals")).json()
        await approve(user, call)
        await ended(user, chat_id)
        return turn

    monkeypatch.setattr("sinas_server.chats.routes.finished", and_it_is_decided)
    chat_id = await open_chat(user, await an_agent(declare))
    answer = (await user.http.post(f"/chats/{chat_id}/messages", json={"content": "danger"}, timeout=60)).json()
    assert (answer["content"], answer["status"], answer["pending_approvals"]) == ("Done.", "completed", [])
    assert answer["channel_id"] == (await get_chat(user, chat_id))["last_turn"]["channel_id"]


async def test_what_a_called_agent_asks_is_told_though_it_is_decided_just_then(
    user: Person, declare: Declare, worker: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's turn once ended its channel with a question that nobody was asked."""
    asked_calls, deciding = waits.asked_calls, list[asyncio.Task[None]]()

    async def and_it_is_decided(db: Db, turn_id: UUID) -> list[ToolCallRow]:
        found = await asked_calls(db, turn_id)
        if found and found[0].turn_id != turn_id and not deciding:
            call: Json = {"chat_id": found[0].chat_id, "tool_call_id": found[0].tool_call_id}
            deciding.append(asyncio.create_task(approve(user, call)))
            while Status.SUSPENDED in await statuses(runtime):
                await asyncio.sleep(0.01)
        return found

    for name in ("journal", "waits"):
        monkeypatch.setattr(f"sinas_server.chats.{name}.asked_calls", and_it_is_decided)
    chat_id = await open_chat(user, await two(declare, "Buy it", rules=DANGER, enabled_functions=["shop/danger"]))
    names = [event.name for event in await stream(user, chat_id, "go") if event.name != "message"]
    assert names == ["tool_start", "approval_required", "round_suspended", "done"]
    assert (await ended(user, chat_id))["messages"][-1]["content"] == "It says: Bought."
    await asyncio.gather(*deciding)


async def test_two_tools_are_allowed_for_always_at_once(
    user: Person, declare: Declare, worker: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def and_the_other_is_too(db: Db, chat: ChatRow) -> ChatRow:
        root = await root_of(db, chat)
        while calls:
            await approve(user, calls.pop(), always_allow=True)
        return root

    rules: list[JsonValue] = [
        {"when": {"contains": "one"}, "call": [{"tool": "shop/danger"}]},
        {"when": {"contains": "two"}, "call": [{"tool": "shop/dangerous"}]},
    ]
    tools: list[JsonValue] = ["shop/danger", "shop/dangerous"]
    chat_id = await open_chat(user, await two(declare, "Buy one", "Buy two", rules=rules, enabled_functions=tools))
    await stream(user, chat_id, "go")
    calls: list[Json] = (await user.http.get("/approvals")).json()
    assert len({call["chat_id"] for call in calls}) == len(tools)
    monkeypatch.setattr(approval, "root_of", and_the_other_is_too)
    await approve(user, calls.pop(), always_allow=True)
    [chat] = await runtime.database.rows(select(ChatRow.always_allowed).where(ChatRow.id == UUID(chat_id)))
    assert set(chat.always_allowed) == {f"counting:{tool}" for tool in tools}


async def test_the_last_two_decisions_on_a_called_agent_at_once_let_it_go_on(
    user: Person, declare: Declare, worker: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who decides first is told where the turn goes on, though it was not told yet that it can."""
    looked, deciding, resume_soon = asyncio.Event(), list[asyncio.Task[None]](), waits._resume_soon

    async def and_the_other_too(runtime: Runtime, turn_id: UUID) -> Resumed:
        if not deciding:
            deciding.append(asyncio.create_task(approve(user, {**calls.pop(), "chat_id": chat_id})))
            while len(await statuses_of(Status.SUSPENDED)) > 1:
                await asyncio.sleep(0.01)
        return await asked.go_on(runtime, turn_id)

    async def statuses_of(status: Status) -> list[str]:
        return [each for each in await statuses(runtime) if each == status]

    async def seen(db: Db, turn_id: UUID) -> list[ToolCallRow]:
        found = await waits.asked_calls(db, turn_id)
        if not found:
            looked.set()
        return found

    async def once_seen(runtime: Runtime, turn_id: UUID) -> None:
        await looked.wait()
        await resume_soon(runtime, turn_id)

    calling: Json = {"call": [{"tool": "shop/danger"}, {"tool": "shop/danger"}]}
    rules: list[JsonValue] = [
        {"when": {"contains": "Buy"}, **calling},
        {"when": {"after_tool": "shop/danger"}, "answer": "Bought."},
    ]
    chat_id = await open_chat(user, await two(declare, "Buy", rules=rules, enabled_functions=["shop/danger"]))
    await stream(user, chat_id, "go")
    calls: list[Json] = (await user.http.get("/approvals")).json()
    monkeypatch.setattr(approval, "go_on", and_the_other_too)
    monkeypatch.setattr(asked, "asked_calls", seen)
    monkeypatch.setattr(waits, "_resume_soon", once_seen)
    path = f"/chats/{chat_id}/approve-tool/{calls.pop()['tool_call_id']}"
    told = (await user.http.post(path, json={"approved": True})).json()
    assert told["resume"] == "queued"
    assert text_of(await reread(user, chat_id, told["channel_id"])) == "It says: Bought."
    await asyncio.gather(*deciding)


async def test_two_messages_under_a_new_session_key_are_one_conversation(
    user: Person, declare: Declare, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Json] = []

    async def ask() -> None:
        answer = await user.http.post(path, json={"message": "Hi", "session_key": "slack:1"}, timeout=60)
        assert answer.status_code == 200, answer.text
        answers.append(answer.json())

    async def after_another(db: Db, caller: Caller, agent: Resource[AgentSpec], wanted: Wanted) -> ChatRow:
        monkeypatch.setattr(invoke, "create_chat", create_chat)
        await ask()
        return await create_chat(db, caller, agent, wanted)

    monkeypatch.setattr(invoke, "create_chat", after_another)
    path = f"/agents/{await declare('plain')}/invoke"
    await ask()
    first, second = answers
    assert first["chat_id"] == second["chat_id"]
    assert len((await get_chat(user, first["chat_id"]))["messages"]) == 4

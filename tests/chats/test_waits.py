"""Turns that wait for the agents they called: what is settled a moment before or after they look, or untold."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from pydantic import JsonValue

from sinas_server.chats import waits
from sinas_server.chats.delegate import AgentTools
from sinas_server.chats.tables import Status
from sinas_server.chats.waits import WAITS_LOOP
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from tests.chats.conftest import CountingTools, Declare, open_chat, stream, text_of, working
from tests.chats.test_agents import statuses, two
from tests.people import Person

LOOKING: list[JsonValue] = [
    {"when": {"contains": "Look"}, "call": [{"tool": "shop/look"}]},
    {"when": {"after_tool": "shop/look"}, "answer": "Seen."},
]


@pytest.fixture
def runtime(runtime: Runtime, tools: CountingTools) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(AgentTools(), tools))


async def test_a_called_agent_may_end_while_its_caller_is_about_to_wait(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once was neither seen as done nor as working then: the caller's turn ended with a question nobody asked."""
    tools.hold = asyncio.Event()
    looked: list[bool] = []

    def then_it_ends(look: Callable[..., Awaitable[bool]]) -> Callable[..., Awaitable[bool]]:
        async def looks(db: Db, turn_id: UUID, step: int) -> bool:
            found = await look(db, turn_id, step)
            if not looked:
                looked.append(found)
                tools.let_go()
                while Status.COMPLETED not in await statuses(runtime):
                    await asyncio.sleep(0.01)
            return found

        return looks

    for name in ("_let_go_on", "_works"):
        monkeypatch.setattr(waits, name, then_it_ends(getattr(waits, name)))
    chat_id = await open_chat(user, await two(declare, "Look", rules=LOOKING, enabled_functions=["shop/look"]))
    async with working(runtime):
        assert text_of(await stream(user, chat_id, "go")) == "It says: Seen."
    assert looked


async def test_a_parent_whose_child_nobody_tells_of_is_found(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(runtime: Runtime, turn_id: object) -> None:
        """As if the process had died here."""

    tools.hold = asyncio.Event()
    chat_id = await open_chat(user, await two(declare, "Look", rules=LOOKING, enabled_functions=["shop/look"]))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    with monkeypatch.context() as patch:
        patch.setattr("sinas_server.chats.waits._resume_soon", lost)
        async with working(runtime):
            while await statuses(runtime) != [Status.RUNNING, Status.WAITING]:
                await asyncio.sleep(0.01)
            tools.let_go()
            while await statuses(runtime) != [Status.COMPLETED, Status.WAITING]:
                await asyncio.sleep(0.01)
    async with working(runtime):
        await WAITS_LOOP.step(runtime)
        assert text_of(await streaming) == "It says: Seen."
    assert await statuses(runtime) == [Status.COMPLETED, Status.COMPLETED]

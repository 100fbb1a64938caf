"""A call of an agent that two workers carry out at the same time: one has lost the turn and does not know it yet."""

import asyncio
import dataclasses
from uuid import UUID

import pytest
from sqlalchemy import select, update

from sinas_server.chats import delegate
from sinas_server.chats.delegate import AgentTools
from sinas_server.chats.prepare import prepare
from sinas_server.chats.record import locked_turn
from sinas_server.chats.tables import Status, TurnRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import CallIdentity, Wait, Waiting
from sinas_server.kernel.unit import Db
from tests.chats.busy import begun
from tests.chats.conftest import Declare, open_chat, stream
from tests.chats.test_agents import CALL, children, two
from tests.people import Person


@pytest.fixture
def runtime(runtime: Runtime) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(AgentTools(),))


async def test_it_begins_one_chat(
    user: Person, declare: Declare, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_id = await open_chat(user, await two(declare, "Help"))
    following = asyncio.create_task(stream(user, chat_id, "go"))
    await begun(user, chat_id)
    await runtime.database.rows(update(TurnRow).values(status=Status.RUNNING))
    [row] = await runtime.database.rows(select(*TurnRow.__table__.columns))
    turn, are_both_there = TurnRow(**row._asdict()), asyncio.Barrier(2)

    async def together(db: Db, turn_id: UUID) -> TurnRow | None:
        await are_both_there.wait()
        return await locked_turn(db, turn_id)

    monkeypatch.setattr(delegate, "locked_turn", together)
    prepared, identity = await prepare(runtime, turn), CallIdentity(turn.chat_id, turn.id, 0, 0, "c")
    calls = [
        AgentTools().call_tool(runtime, prepared.caller, prepared.prompt.tools[CALL], {"message": "Help"}, identity)
        for _ in range(2)
    ]
    assert await asyncio.gather(*calls) == [Waiting(Wait.AGENT)] * 2
    assert len(await children(user, chat_id)) == 1
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)

"""Stopping, busy chats, and turns whose workers are gone."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence

import pytest
from sqlalchemy import delete, select, text, update

from sinas_server.backends.llm import Event, Message, ModelRequest, ProviderConfig
from sinas_server.backends.stream import Position, StreamEvent
from sinas_server.backends.stream.redis import RedisStreams
from sinas_server.chats import loop
from sinas_server.chats.ask import ask
from sinas_server.chats.history import read_history
from sinas_server.chats.stop import SETTLE_LOOP, settle
from sinas_server.chats.tables import ChannelRow, ChatRow, MessageRow, ToolCallRow, TurnRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Database
from tests.chats.conftest import CountingTools, Declare, get_chat, open_chat, reread, stream, text_of, working
from tests.people import Person

LONG = "A long answer that takes its time. " * 400
"""Far longer than any of these tests lets it go on."""
LOOK = [
    {"when": {"contains": "look"}, "call": [{"tool": "shop/look", "arguments": {"n": "1"}}]},
    {"when": {"after_tool": "shop/look"}, "answer": "Seen."},
]


async def channel_of(person: Person, chat_id: str) -> str:
    """The channel of the turn that is running."""
    while (channel := (await get_chat(person, chat_id))["active_channel_id"]) is None:
        await asyncio.sleep(0.01)
    return str(channel)


async def has_text(runtime: Runtime, channel: str) -> None:
    """Waits until something was said."""
    while not await runtime.redis.xlen(f"sinas:stream:{channel}") > 1:
        await asyncio.sleep(0.01)


async def test_what_was_said_until_the_stop_is_kept(
    user: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    chat_id = await open_chat(user, await declare("slow", default=LONG, delay_ms=30))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    await has_text(runtime, await channel_of(user, chat_id))
    body = {"content": "and?", "when_busy": "reject"}
    busy = await user.http.post(f"/chats/{chat_id}/messages", json=body)
    assert busy.status_code == 409
    assert "stop" in busy.json()["detail"]
    stopped = await user.http.post(f"/chats/{chat_id}/stop")
    assert stopped.json() == {"status": "stopped", "withdrawn": 0}
    chat = await get_chat(user, chat_id)
    events = await streaming
    assert events[-1].data == {"type": "done", "status": "cancelled"}
    said = chat["messages"][1]["content"]
    assert LONG.startswith(said)
    assert text_of(events) == said
    assert chat["active_channel_id"] is None
    assert chat["last_turn"]["status"] == "CANCELLED"
    assert (await user.http.post(f"/chats/{chat_id}/stop")).json() == {"status": "idle", "withdrawn": 0}
    assert text_of(await reread(user, chat_id, chat["last_turn"]["channel_id"])) == said


class DeafWorker(RedisStreams):
    """Whoever settles a turn gets on only after its worker, which has not heard of the stop, has said more."""

    more: asyncio.Event | None = None

    async def append(self, channel: str, events: Sequence[StreamEvent], *, tell: Sequence[str] = ()) -> None:
        await super().append(channel, events, tell=tell)
        if self.more is not None:
            self.more.set()

    async def seal(self, channel: str, upto: Position) -> list[StreamEvent]:
        found = await super().seal(channel, upto)
        self.more = asyncio.Event()
        await self.more.wait()
        return found


async def test_nobody_hears_more_of_a_worker_that_has_not_heard_of_the_stop_than_is_kept(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    settings = runtime.settings.model_copy(update={"job_lease_seconds": 3600})  # it does not look by itself either
    deaf = dataclasses.replace(runtime, settings=settings, streams=DeafWorker(runtime.redis))
    chat_id = await open_chat(user, await declare("slow", default=LONG, delay_ms=30))
    async with working(deaf):
        streaming = asyncio.create_task(stream(user, chat_id, "go"))
        await has_text(runtime, await channel_of(user, chat_id))
        async with runtime.database.unit() as db:
            turn = (await db.execute(update(TurnRow).values(status="CANCELLED").returning(TurnRow.id))).scalar_one()
        await settle(deaf, turn)
        events = await streaming
    assert events[-1].data == {"type": "done", "status": "cancelled"}
    said = (await get_chat(user, chat_id))["messages"][1]["content"]
    assert said
    assert text_of(events) == said
    assert text_of(await reread(user, chat_id, (await get_chat(user, chat_id))["last_turn"]["channel_id"])) == said


async def test_a_stop_during_a_call_leaves_a_whole_history(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    tools.hold = asyncio.Event()
    chat_id = await open_chat(user, await declare("looker", LOOK, enabled_functions=["shop/look"]))
    streaming = asyncio.create_task(stream(user, chat_id, "look"))
    while not tools.ran:
        await asyncio.sleep(0.01)
    await user.http.post(f"/chats/{chat_id}/stop")
    assert (await streaming)[-1].data["status"] == "cancelled"
    tools.hold.set()
    messages = (await get_chat(user, chat_id))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[2]["content"] == "Not carried out: the user stopped the agent."
    assert text_of(await stream(user, chat_id, "hello")) == "Hello, I am the agent."


async def test_a_turn_that_nobody_works_on_is_stopped_at_once(user: Person, declare: Declare) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    await channel_of(user, chat_id)
    await user.http.post(f"/chats/{chat_id}/stop")
    assert (await streaming)[-1].data["status"] == "cancelled"


async def test_a_canceled_turn_without_a_worker_is_settled(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    await channel_of(user, chat_id)
    async with runtime.database.unit() as db:
        await db.execute(text("UPDATE turns SET status = 'CANCELLED', attempt = 1"))
    body = {"content": "x", "when_busy": "reject"}
    assert (await user.http.post(f"/chats/{chat_id}/messages", json=body)).status_code == 409
    await SETTLE_LOOP.step(runtime)
    assert (await streaming)[-1].data["status"] == "cancelled"
    assert (await get_chat(user, chat_id))["active_channel_id"] is None


async def test_deleting_a_chat_ends_its_turn_and_its_readers(
    user: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    chat_id = await open_chat(user, await declare("slow", default=LONG, delay_ms=30))
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    await has_text(runtime, await channel_of(user, chat_id))
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    assert (await streaming)[-1].data == {"type": "error", "error": "the chat was deleted"}
    assert (await user.http.get(f"/chats/{chat_id}")).status_code == 404
    for table in (MessageRow, TurnRow, ChannelRow, ToolCallRow):
        assert await runtime.database.rows(select(table)) == []


async def test_a_model_is_not_asked_in_a_chat_that_was_just_deleted(
    user: Person, declare: Declare, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_id = await open_chat(user, await declare("brief", default="Yes."))
    asked: list[ModelRequest] = []

    async def recall(database: Database, turn: TurnRow, most: int) -> list[Message]:
        async with database.unit() as db:  # over HTTP the worker would mostly hear of it in time
            await db.execute(delete(ChatRow).where(ChatRow.id == turn.chat_id))
        return await read_history(database, turn, most)

    def listen(runtime: Runtime, config: ProviderConfig, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        asked.append(request)
        return ask(runtime, config, request)

    monkeypatch.setattr(loop, "read_history", recall)
    monkeypatch.setattr(loop, "ask", listen)
    assert (await stream(user, chat_id, "go"))[-1].data == {"type": "error", "error": "the chat was deleted"}
    assert asked == []

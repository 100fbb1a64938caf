"""Several clients at one stream, each with a connection of its own: all see the same, and none disturbs another."""

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest

from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import CountingTools, Declare, Event, Json, get_chat, joined, open_chat, parse, reread
from tests.functions.conftest import port as port_of_functions
from tests.people import Person

port = port_of_functions
RULES: list[Json] = [
    {"when": {"contains": "look"}, "answer": "I look.", "call": [{"tool": "shop/look", "arguments": {"n": "1"}}]},
    {"when": {"after_tool": "shop/look"}, "answer": "I have seen all there is to be seen. " * 20},
]


class Viewer:
    """A client on a socket of its own; what it has read."""

    def __init__(self, person: Person, port: int, chat_id: str) -> None:
        headers = {"Authorization": f"Bearer {person.token}"}
        self.http = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, verify=False)
        self.chat = f"/chats/{chat_id}"
        self.events: list[Event] = []
        self.channel = ""

    async def say(self, content: str, *, leave_after: int = 0) -> list[Event]:
        """Send a message and read the stream of the answer."""
        return await self._read("POST", f"{self.chat}/messages/stream", leave_after, json={"content": content})

    async def watch(self, channel: str, *, leave_after: int = 0) -> list[Event]:
        """Read on in a channel, after what was read before; again from the start if that is nothing."""
        last = {"Last-Event-ID": self.events[-1].id} if self.events else {}
        return await self._read("GET", f"{self.chat}/stream/{channel}", leave_after, headers=last)

    async def hop(self, channel: str) -> list[Event]:
        """Watch a channel over a new connection for each event."""
        while not self.ended:
            await self.watch(channel, leave_after=1)
        return self.events

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].name in ("done", "error")

    async def _read(
        self,
        method: str,
        path: str,
        leave_after: int,
        *,
        json: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> list[Event]:
        count = 0
        async with self.http.stream(method, path, json=json, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            self.channel = answer.headers["x-channel-id"]
            async for event in _events(answer):
                self.events.append(event)
                count += 1
                if count == leave_after:
                    break
        return self.events

    async def sees(self, name: str) -> None:
        """Wait until an event of this name was read."""
        async with asyncio.timeout(30):
            while all(event.name != name for event in self.events):
                await asyncio.sleep(0.01)


async def _events(answer: httpx2.Response) -> AsyncIterator[Event]:
    block = ""
    async for line in answer.aiter_lines():
        if line:
            block += f"{line}\n"
            continue
        for event in parse(block.rstrip("\n")):
            yield event
        block = ""


@pytest.fixture
async def chat_id(user: Person, declare: Declare, tools: CountingTools, worker: None) -> str:
    """A chat whose agent waits in the middle of its turn until `tools.hold` is set."""
    tools.hold = asyncio.Event()
    return await open_chat(user, await declare("looker", RULES, enabled_functions=["shop/look"], delay_ms=5))


Viewers = Callable[[Person], Viewer]


@pytest.fixture
async def viewer_of(port: int, chat_id: str) -> AsyncIterator[Viewers]:
    """Makes a client of somebody for the chat."""
    made: list[Viewer] = []

    def make(person: Person) -> Viewer:
        made.append(Viewer(person, port, chat_id))
        return made[-1]

    yield make
    for viewer in made:
        await viewer.http.aclose()


async def test_all_see_the_same_wherever_they_come_in(
    user: Person, admin: Person, viewer_of: Viewers, chat_id: str, tools: CountingTools, runtime: Runtime
) -> None:
    assert tools.hold is not None
    sender, tab, other, leaver, hopper = (viewer_of(who) for who in (user, user, admin, admin, user))
    reading = [asyncio.create_task(sender.say("look"))]
    await sender.sees("tool_start")
    reading += [asyncio.create_task(viewer.watch(sender.channel)) for viewer in (tab, other)]
    reading.append(asyncio.create_task(hopper.hop(sender.channel)))
    for viewer in (tab, other, hopper):
        await viewer.sees("tool_start")
    await leaver.watch(sender.channel, leave_after=1)
    assert not leaver.ended
    tools.hold.set()
    await asyncio.gather(*reading)
    chat = await get_chat(user, chat_id)
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "tool", "assistant"]
    told = joined(sender.events)
    assert [text for _, name, text in told if name == "message"] == ["I look.", chat["messages"][-1]["content"]]
    for viewer in (tab, other, hopper):
        assert joined(viewer.events) == told
    assert joined(await leaver.watch(sender.channel)) == told, "who left reads on where it was"
    assert joined(await reread(admin, chat_id, sender.channel)) == told
    await runtime.redis.flushdb()
    assert joined(await viewer_of(admin).watch(sender.channel)) == told, "also without Redis"
    assert len(tools.ran) == 1


async def test_the_turn_goes_on_when_its_sender_leaves(
    user: Person, admin: Person, viewer_of: Viewers, chat_id: str, tools: CountingTools
) -> None:
    assert tools.hold is not None
    sender, other = viewer_of(user), viewer_of(admin)
    await sender.say("look", leave_after=1)
    watching = asyncio.create_task(other.watch(sender.channel))
    await other.sees("tool_start")
    tools.hold.set()
    events = await watching
    assert events[-1].data == {"type": "done", "status": "completed"}
    assert joined(await sender.watch(sender.channel)) == joined(events)
    assert (await get_chat(user, chat_id))["last_turn"]["status"] == "COMPLETED"


async def test_who_may_not_read_the_chat_does_not(
    user: Person, guest: Person, viewer_of: Viewers, chat_id: str
) -> None:
    sender, stranger = viewer_of(user), viewer_of(guest)
    reading = asyncio.create_task(sender.say("look"))
    await sender.sees("tool_start")
    answer = await stranger.http.get(f"/chats/{chat_id}/stream/{sender.channel}")
    assert answer.status_code == 404
    await user.http.post(f"/chats/{chat_id}/stop")
    assert (await reading)[-1].data["status"] == "cancelled"

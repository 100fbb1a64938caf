"""A turn that is cut off at any boundary goes on: nothing journaled is done twice, readers miss and repeat nothing."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from uuid import UUID

import pytest

from sinas_server.backends.stream import START, Position
from sinas_server.chats import ask, jobs
from sinas_server.chats.events import Call
from sinas_server.chats.follow import follow, journaled, replay
from sinas_server.chats.tables import QUEUE, TurnRow
from sinas_server.kernel.job import Claim, InterruptedWorkError, Job
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import (
    CountingTools,
    Declare,
    Event,
    get_chat,
    open_chat,
    parse,
    working,
)
from tests.people import Person

FIRST, LAST = "Looking.", "Both here."
RULES = [
    {
        "when": {"contains": "look"},
        "answer": FIRST,
        "call": [
            {"tool": "shop/look", "arguments": {"n": "1"}},
            {"tool": "shop/count", "arguments": {"n": "2"}},
        ],
    },
    {"when": {"after_tool": "shop/look"}, "answer": LAST},
]
Step = Callable[..., Awaitable[object]]
JOURNALED = ("heard", "answered", "finished", "closed_step", "drafted", "completed")
SENT = ("open", "send", "finish")


class Breaker:
    """Cuts a turn off at its n-th boundary: before or after a write to the journal or the stream."""

    def __init__(self, tools: CountingTools, cut_at: int | None = None, *, loses_redis: bool = False) -> None:
        self.tools = tools
        self.cut_at = cut_at
        self.loses_redis = loses_redis
        self.passed = 0
        self.where = "nowhere"
        self.journaled: list[tuple[int, int]] = []
        """The index of each call with a journaled result, and how many calls had run by then."""

    async def boundary(self, runtime: Runtime, channel_id: UUID, where: str) -> None:
        self.passed += 1
        if self.passed == self.cut_at:
            self.where = where
            if self.loses_redis:
                await runtime.streams.drop(str(channel_id))
            raise InterruptedWorkError(where)

    def around(self, runtime: Runtime, channel_id: UUID, name: str, step: Step) -> Step:
        async def wrapped(*args: object, **kwargs: object) -> object:
            await self.boundary(runtime, channel_id, f"before {name}")
            result = await step(*args, **kwargs)
            if name == "finished":
                assert isinstance(args[0], Call)
                self.journaled.append((args[0].index, len(self.tools.ran)))
            await self.boundary(runtime, channel_id, f"after {name}")
            return result

        return wrapped

    async def run(self, runtime: Runtime, claim: Claim[TurnRow]) -> None:
        loop = await jobs.taken_up(runtime, claim.row)
        assert loop is not None
        for owner, names in ((loop.journal, JOURNALED), (loop.channel, SENT)):
            for name in names:
                setattr(owner, name, self.around(runtime, claim.row.channel_id, name, getattr(owner, name)))
        await loop.run(interrupted=claim.interrupted)

    def job(self) -> Job[TurnRow]:
        return Job(queue=QUEUE, table=TurnRow, run=self.run, fail=jobs.fail)

    def check(self) -> None:
        assert self.cut_at is None or self.passed >= self.cut_at
        for index, ran in self.journaled:
            assert index not in [call.index for call in self.tools.ran[ran:]], f"call {index} ran again: {self.where}"


@pytest.fixture(autouse=True)
def every_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are neither coalesced nor read ahead, so that each is a boundary."""

    async def one_by_one(events: AsyncGenerator[object], _: float) -> AsyncGenerator[list[object]]:
        async with aclosing(events):
            async for event in events:
                yield [event]

    monkeypatch.setattr(ask, "batches", one_by_one)


async def told(blocks: AsyncIterator[bytes]) -> list[Event]:
    """The events of a stream until its end."""
    return parse(b"".join([block async for block in blocks]).decode())


def check_events(events: list[Event], where: str, *, may_restart: bool) -> None:
    """The whole story: no gap and no repeat, whatever was cut."""
    places = [tuple(map(int, event.id.split("-"))) for event in events]
    assert places == sorted(set(places)), where
    text: dict[int, str] = defaultdict(str)
    for (phase, _), event in zip(places, events, strict=True):
        if event.name == "restart":
            assert may_restart, where
            text[phase] = ""
        elif event.name == "message":
            text[phase] += event.data["content"]
    assert text == {1: FIRST, 3: LAST}, where
    others = [event.name for event in events if event.name not in ("message", "restart")]
    assert others == ["tool_start", "tool_start", "tool_end", "tool_end", "done"], where
    ended = [event.data["name"] for event in events if event.name == "tool_end"]
    assert sorted(ended) == ["shop__count", "shop__look"], where


async def play(runtime: Runtime, person: Person, agent: str, breaker: Breaker) -> None:
    """One turn that is cut off by the breaker, and everything its client can see of it."""
    chat_id = await open_chat(person, agent)
    path = f"/chats/{chat_id}/messages"
    sending = asyncio.create_task(person.http.post(path, json={"content": "look"}, timeout=30))
    while (channel := (await get_chat(person, chat_id))["active_channel_id"]) is None:
        await asyncio.sleep(0)
    async with working(runtime, breaker.job()):
        seen = await asyncio.wait_for(told(follow(runtime, UUID(channel), START, idle_seconds=0.05)), 20)
        answer = await sending
    assert answer.status_code == 200, (breaker.where, answer.text)
    assert answer.json()["content"] == LAST
    breaker.check()
    messages = (await get_chat(person, chat_id))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [message["name"] for message in messages][2:4] == ["shop__look", "shop__count"]
    assert messages[1]["content"] == FIRST
    unknown = breaker.loses_redis or breaker.where == "before open"  # what was sent of the answer, if anything
    check_events(seen, breaker.where, may_restart=unknown)
    story = await journaled(runtime, UUID(channel))
    assert story is not None
    for last in range(len(seen)):
        after = Position.parse(seen[last].id)
        from_journal = await told(replay(story, after))
        check_events(seen[: last + 1] + from_journal, breaker.where, may_restart=unknown)
        if last < len(seen) - 1:
            from_stream = await told(follow(runtime, UUID(channel), after, idle_seconds=0.05))
            check_events(seen[: last + 1] + from_stream, breaker.where, may_restart=unknown)


@pytest.mark.parametrize("loses_redis", [False, True], ids=["worker", "worker and Redis"])
async def test_a_turn_goes_on_from_every_boundary(
    runtime: Runtime, user: Person, declare: Declare, tools: CountingTools, loses_redis: bool
) -> None:
    agent = await declare("looker", RULES, enabled_functions=["shop/look", "shop/count"])
    whole = Breaker(tools)
    await play(runtime, user, agent, whole)
    assert whole.passed > 25
    for cut_at in range(1, whole.passed + 1):
        await play(runtime, user, agent, Breaker(tools, cut_at, loses_redis=loses_redis))

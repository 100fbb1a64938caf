"""More is said while a turn runs, and something dies: each message is heard once, in order, and each turn ends once."""

import asyncio
from contextlib import suppress
from uuid import uuid4

import httpx2
import pytest

from tests.faults.harness import Json, Stack, eventually
from tests.faults.invariants import Invariants, conversation
from tests.faults.reader import Reader
from tests.faults.test_turns import Point, cases

LATER = ("second", "third")
CALLED = ["Looking at both.", "once", "again"]
"""What the agent says and calls at first."""
SAW = "They say True, True."
HELD, STEP_HELD = ("finished:after", 2), ("finished:before", 1)
"""When the first step of the first turn is done, so that its last answer follows; and before it has any result."""


class Talk:
    """A chat whose agent is told more while it is held at a point."""

    def __init__(self, invariants: Invariants, way: str) -> None:
        self.invariants = invariants
        self.stack = invariants.stack
        self.way = way
        self.readers: list[Reader] = []
        self.chat_id = ""

    async def begin(self) -> None:
        made = await self.stack.ask("POST", "/agents/t/busy/chats", {})
        self.chat_id = made["id"]
        self.readers = [Reader(self.stack, self.chat_id)]
        for _ in LATER:  # they let their connections break all the time
            more = Reader(self.stack, self.chat_id, hop=2, key=str(uuid4()), when_busy=self.way)
            self.readers.append(more)

    async def say_more(self) -> list["asyncio.Task[Json]"]:
        """Send the later messages one after the other."""
        sent = []
        for number, content in enumerate(LATER, 1):
            sent.append(asyncio.create_task(self.readers[number].say(content)))

            async def has_arrived(number: int = number) -> bool:
                return self.readers[number].channel is not None and self._waiting() == number

            await eventually(has_arrived, f"the {content} message does not arrive")
        return sent

    def _waiting(self) -> int:
        query = "SELECT count(*) AS n FROM queued_messages WHERE chat_id = %(chat)s"
        return int(self.stack.rows(query, chat=self.chat_id)[0]["n"])

    async def stop(self) -> None:
        """Stop the turn that runs, once: whoever gets no answer looks."""
        async with self.stack.client() as client:
            with suppress(httpx2.TransportError):
                answer = await client.post(f"/chats/{self.chat_id}/stop")
                if answer.status_code == 200:
                    return
                assert answer.status_code == 503, answer.text

        await self.stack.whole()
        if self.turns()[0]["status"] != "CANCELLED":
            await self.stop()

    def lease(self, seconds: int) -> None:
        """Have the worker of the turn that runs count as lost after so many seconds, unless it says that it lives."""
        query = "UPDATE turns SET lease_until = now() + %(seconds)s * interval '1 second'"
        of_turn = " WHERE chat_id = %(chat)s AND status IN ('RUNNING', 'CANCELLED') AND finished_at IS NULL RETURNING 1"
        self.stack.rows(query + of_turn, chat=self.chat_id, seconds=seconds)

    def turns(self) -> list[Json]:
        """In the order in which they began."""
        query = "SELECT id, status, attempt, channel_id::text, injected, heard FROM turns WHERE chat_id = %(chat)s"
        return self.stack.rows(query + " ORDER BY begun_at", chat=self.chat_id)

    async def ended(self, *said: str) -> Json:
        """When everything has ended: what was said is just this, calls by what they call."""
        await self.invariants.ends()
        chat = await self.readers[0].chat()
        assert conversation(chat) == [*said]
        assert (chat["queued"], chat["active_channel_id"], self._waiting()) == ([], None, 0)
        row = self.stack.rows("SELECT queued FROM chats WHERE id = %(chat)s", chat=self.chat_id)[0]
        assert row["queued"] == 0
        self.invariants.called(chat)
        return chat

    async def read_again(self) -> None:
        """Who comes late reads of every turn that completed what those did who were there, with and without Redis."""
        for turn in self.turns():
            if turn["status"] != "COMPLETED":
                continue
            for present in (True, False):
                if not present:
                    self.stack.forget_stream(turn["channel_id"])
                late = Reader(self.stack, self.chat_id, channel=turn["channel_id"])
                await late.follow()
                self.invariants.told(turn["id"], late)


async def busy(
    invariants: Invariants,
    way: str,
    point: Point,
    actions: str,
    *,
    held: Point = HELD,
    sent: bool = True,
    says: str = "go",
) -> Talk:
    """The agent, which has called its tools, is told more, with a fault: after that was `sent`, or meanwhile."""
    talk, stack = Talk(invariants, way), invariants.stack
    await talk.begin()
    with stack.hold(*held):
        first = asyncio.create_task(talk.readers[0].say(says))
        await stack.happened()
        if not sent:
            stack.plan(*point, actions)
        more = await talk.say_more()
        if sent:
            stack.plan(*point, actions)
    await asyncio.gather(first, *more)
    await stack.happened()
    return talk


async def queued(invariants: Invariants, point: Point, actions: str, *, sent: bool = True) -> Talk:
    """Each message has a turn of its own."""
    talk = await busy(invariants, "queue", point, actions, sent=sent)
    await talk.ended("go", *CALLED, SAW, "second", "The second answer.", "third", "The third answer.")
    turns = talk.turns()
    assert [turn["status"] for turn in turns] == ["COMPLETED"] * 3
    assert [turn["channel_id"] for turn in turns] == [reader.channel for reader in talk.readers]
    assert [reader.how for reader in talk.readers[1:]] == ["queued", "queued"]
    for turn, reader in zip(turns, talk.readers, strict=True):
        invariants.told(turn["id"], reader)
    await talk.read_again()
    return talk


async def injected(invariants: Invariants, held: Point, point: Point, actions: str, *, sent: bool = True) -> Talk:
    """All of them belong to one turn, which answers the last."""
    talk = await busy(invariants, "inject", point, actions, held=held, sent=sent)
    answered = [SAW] if held == HELD else []
    await talk.ended("go", *CALLED, *answered, *LATER, "The third answer.")
    [turn] = talk.turns()
    assert (turn["status"], turn["injected"], turn["heard"]) == ("COMPLETED", 2, 2)
    assert {reader.channel for reader in talk.readers} == {turn["channel_id"]}
    assert [reader.how for reader in talk.readers[1:]] == ["injected", "injected"]
    assert len(talk.readers[0].injected) == len(LATER)
    invariants.told(turn["id"], *talk.readers)
    await talk.read_again()
    return talk


async def test_traces_of_what_is_queued_have_these_points(stack: Stack, invariants: Invariants) -> None:
    stack.forget_trace()
    await queued(invariants, ("completed:before", 1), "")
    passed = await stack.trace("expire:after")
    steps = ("answered", "finished", "closed_step", "completed")
    assert [passed[f"{step}:committed"] for step in steps] == [1, 2, 0, 3]
    assert [passed[point] for point in ("request:committed", "turns.claim:after", "canceled:before")] == [4, 3, 0]


async def test_traces_of_what_is_injected_have_these_points(stack: Stack, invariants: Invariants) -> None:
    for held, closed, completed in ((STEP_HELD, 1, 1), (HELD, 0, 2)):
        stack.forget_trace()
        await injected(invariants, held, ("completed:before", 1), "")
        passed = await stack.trace("expire:after")
        steps = ("answered", "finished", "closed_step", "completed")
        assert [passed[f"{step}:committed"] for step in steps] == [1, 2, closed, completed]
        assert [passed[point] for point in ("request:committed", "turns.claim:after", "canceled:before")] == [4, 1, 0]


FIRST_ENDS = [("completed:commit", 1), ("completed:committed", 1)]
"""The end of a turn is the beginning of the next one."""
NEVER: Point = ("none", 1)
NEXT_CLAIMED = ("turns.claim:committed", 1)


@pytest.mark.parametrize(("point", "nth"), cases([*FIRST_ENDS, NEXT_CLAIMED]))
async def test_the_agent_worker_dies_between_turns(invariants: Invariants, point: str, nth: int) -> None:
    talk = await queued(invariants, (point, nth), "agents")
    first, *later = [reader.restarts for reader in talk.readers]
    assert first == 0
    lost = [turn["attempt"] - 1 for turn in talk.turns()[1:]]
    if (point, nth) == NEXT_CLAIMED:  # nobody can know that nothing was sent
        assert sum(lost) == 1
        assert later == lost
    else:  # a turn that is due is claimed by whoever looks, and the worker may do so in the moment before it dies
        assert all(restarts <= attempts for restarts, attempts in zip(later, lost, strict=True))


@pytest.mark.parametrize(("point", "nth"), cases([("completed:commit", 1), ("turns.claim:commit", 1)]))
async def test_the_database_dies_between_turns(invariants: Invariants, point: str, nth: int) -> None:
    await queued(invariants, (point, nth), "postgres")


@pytest.mark.parametrize(("point", "nth"), cases([("completed:committed", 1), NEXT_CLAIMED]))
async def test_an_answer_gets_lost_between_turns(invariants: Invariants, point: str, nth: int) -> None:
    await queued(invariants, (point, nth), "lose")


async def test_redis_forgets_everything_between_turns(invariants: Invariants) -> None:
    await queued(invariants, ("completed:committed", 1), "flush agents")


async def test_everything_dies_between_turns(invariants: Invariants) -> None:
    dies = queued(invariants, ("completed:committed", 1), "supervisor")
    await asyncio.gather(dies, invariants.stack.restart())


@pytest.mark.parametrize(("point", "nth"), cases([("failed:commit", 1), ("failed:committed", 1)]))
async def test_the_agent_worker_dies_when_a_turn_fails(invariants: Invariants, point: str, nth: int) -> None:
    says = "go and fail"
    talk = await busy(invariants, "queue", (point, nth), "agents", says=says)
    await talk.ended(says, *CALLED, "second", "The second answer.", "third", "The third answer.")
    failed, *turns = talk.turns()
    assert [turn["status"] for turn in (failed, *turns)] == ["FAILED", "COMPLETED", "COMPLETED"]
    end = talk.readers[0].end
    assert end is not None
    assert end.name == "error"
    for turn, reader in zip(turns, talk.readers[1:], strict=True):
        invariants.told(turn["id"], reader)
    await talk.read_again()


async def stopped(invariants: Invariants, point: Point, actions: str, then: Point = NEVER, later: str = "") -> None:
    """A turn is stopped with a fault, and maybe then another in whoever settles it, the scheduler or not."""
    talk, stack = Talk(invariants, "queue"), invariants.stack
    await talk.begin()
    with stack.hold(*HELD):
        going = [asyncio.create_task(talk.readers[0].say("go"))]
        await stack.happened()
        going += await talk.say_more()
        if then != NEVER:  # until that is planned, nobody settles it
            talk.lease(3600)
        stack.plan(*point, actions)
        stopping = asyncio.create_task(talk.stop())

        async def is_stopped() -> bool:
            return bool(talk.turns()[0]["status"] == "CANCELLED")

        await eventually(is_stopped, "it is not stopped")
        if then != NEVER:
            await stack.happened()
            stack.plan(*then, later)
            if later == "scheduler":
                talk.lease(0)
    await stack.happened()
    if then != NEVER:
        talk.lease(0)
    await asyncio.gather(*going, stopping)
    await invariants.ends()
    partial = [said for said in conversation(await talk.readers[0].chat()) if said and SAW.startswith(said)]
    await talk.ended("go", *CALLED, *partial, "second", "The second answer.", "third", "The third answer.")
    _, *turns = talk.turns()
    assert [turn["status"] for turn in turns] == ["COMPLETED"] * 2
    end = talk.readers[0].end
    assert end is not None
    assert (end.name, end.data["status"]) == ("done", "cancelled")
    for turn, reader in zip(turns, talk.readers[1:], strict=True):
        invariants.told(turn["id"], reader)
    await talk.read_again()


@pytest.mark.parametrize(
    ("point", "actions"),
    [
        ("request:committed", "api"),
        ("request:commit", "postgres"),
        ("canceled:before", "agents"),
        ("canceled:commit", "agents"),
        ("canceled:committed", "agents"),
        ("canceled:commit", "postgres"),
        ("canceled:committed", "lose"),
        ("canceled:committed", "flush agents"),
    ],
)
async def test_something_dies_when_a_turn_is_stopped(invariants: Invariants, point: str, actions: str) -> None:
    await stopped(invariants, (point, 1), actions)


@pytest.mark.parametrize("moment", ["commit", "committed"])
@pytest.mark.parametrize(("lost", "who"), [("agents hold", "api"), ("agents api", "scheduler")])
async def test_who_stops_a_turn_for_its_dead_worker_dies_too(
    invariants: Invariants, lost: str, who: str, moment: str
) -> None:
    await stopped(invariants, ("request:committed", 1), lost, (f"settle:{moment}", 1), who)


PLACES = [
    pytest.param(STEP_HELD, "closed_step", 3, id="closed_step"),  # after two ends of calls
    pytest.param(HELD, "completed", 5, id="completed"),  # after an end and three pieces of the answer
]
"""Where it is held when something is injected, the step that hears it, and as which event from there that is told."""


@pytest.mark.parametrize(("held", "step", "told"), PLACES)
@pytest.mark.parametrize("moment", ["commit", "committed", "told"])
async def test_the_agent_worker_dies_when_it_hears_more(
    invariants: Invariants, held: Point, step: str, told: int, moment: str
) -> None:
    point = ("append:after", told) if moment == "told" else (f"{step}:{moment}", 1)
    talk = await injected(invariants, held, point, "agents")
    assert [reader.restarts for reader in talk.readers] == [0, 0, 0]


@pytest.mark.parametrize(("held", "step", "told"), PLACES)
@pytest.mark.parametrize("fault", ["postgres", "lose", "flush agents"])
async def test_a_server_dies_when_more_is_heard(
    invariants: Invariants, held: Point, step: str, told: int, fault: str
) -> None:
    points = {
        "postgres": (f"{step}:commit", 1),
        "lose": (f"{step}:committed", 1),
        "flush agents": ("append:after", told),
    }
    await injected(invariants, held, points[fault], fault)


@pytest.mark.parametrize("way", ["queue", "inject"])
@pytest.mark.parametrize(
    ("point", "actions"),
    [
        ("request:commit", "api"),
        ("request:committed", "api"),
        ("request:commit", "postgres"),
        ("request:committed", "lose"),
    ],
)
async def test_something_dies_when_more_is_said(invariants: Invariants, way: str, point: str, actions: str) -> None:
    if way == "queue":
        await queued(invariants, (point, 1), actions, sent=False)
    else:
        await injected(invariants, HELD, (point, 1), actions, sent=False)

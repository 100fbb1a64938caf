"""Something dies while the user is asked, decides and answers: each counts once, and only what he allowed is done."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from uuid import uuid4

import httpx2
import pytest

from tests.faults.harness import Json, Stack, eventually
from tests.faults.invariants import Invariants, conversation
from tests.faults.reader import Reader, both
from tests.faults.test_turns import Point, cases

ASKED = ["go", "I ask first.", "once", "askUser", "again"]
"""What is said and called before the agent waits for an approval of the first call and for an answer to the second."""
NOTHING: Point = ("none", 1)


class Asking:
    """A chat whose agent waits for the user."""

    def __init__(self, invariants: Invariants, agent: str = "asks") -> None:
        self.invariants = invariants
        self.stack = invariants.stack
        self.agent = agent
        self.chat_id = ""
        self.readers: tuple[Reader, ...] = ()
        self.first: str | None = None
        """The channel on which the user is asked."""
        self.ids: list[str] = []
        """The calls that wait for him."""

    async def begin(self, point: Point = NOTHING, actions: str = "") -> None:
        """Until it waits, with a fault or without."""
        made = await self.stack.ask("POST", f"/agents/t/{self.agent}/chats", {})
        self.chat_id = made["id"]
        patient, restless = self.readers = (Reader(self.stack, self.chat_id), Reader(self.stack, self.chat_id, hop=2))
        self.stack.plan(*point, actions)
        await both(patient, restless, "go")
        if point != NOTHING:
            await self.stack.happened()
        await self.stack.rest()
        for reader in self.readers:
            assert reader.end is not None
            assert (reader.end.name, reader.end.data["status"]) == ("done", "suspended")
        assert patient.asked == restless.asked
        self.first, self.ids = patient.channel, patient.asked

    async def decide(self, *, approved: bool = True) -> None:
        """On the first call that waits."""
        await self._insist(f"approve-tool/{self.ids[0]}", {"approved": approved})

    async def answer(self) -> None:
        """The question that the second call asks."""
        await self._insist(f"pending-input/{self.ids[1]}", {"answer": "blue"})

    async def _insist(self, path: str, body: Json) -> None:
        """Say it until it is heard, or was heard already where an answer has got lost."""
        heard = {202}
        async with self.stack.client() as client:
            while True:
                try:
                    answer = await client.post(f"/chats/{self.chat_id}/{path}", json=body)
                except httpx2.TransportError:
                    answer = None
                if answer is not None and answer.status_code in heard:
                    return
                assert answer is None or answer.status_code == 503, answer.text
                heard = {202, 404, 409}
                await asyncio.sleep(0.1)

    async def follow(self) -> Json:
        """Follow where it goes on, to the end; gives the chat as it is then."""

        async def goes_on() -> str | None:
            channel = str((await self.readers[0].chat())["last_turn"]["channel_id"])
            return channel if channel != self.first else None

        channel = await eventually(goes_on, "it does not go on")
        await asyncio.gather(*(reader.go_on(channel) for reader in self.readers))
        await self.invariants.ends()
        return await self.readers[0].chat()

    async def is_settled(self, chat: Json, *said: str, refused: list[str] | None = None) -> None:
        """Just this was said and called, readers heard it, early and late, and nothing is asked any more."""
        assert conversation(chat) == [*said]
        turn = chat["last_turn"]
        assert turn["status"] == "COMPLETED"
        assert chat["pending_approvals"] == []
        async with self.stack.client() as client:
            for path in (f"/chats/{self.chat_id}/pending-input", "/approvals"):
                assert (await client.get(path)).json() == []
        query = "SELECT id FROM channels WHERE turn_id = %(turn)s AND resumed AND suspended_step IS NULL"
        assert len(self.stack.rows(query, turn=turn["id"])) == 1, "it goes on once"
        self.invariants.told(turn["id"], *self.readers, refused=refused or ())
        for present in (True, False):
            if not present:
                self.stack.forget_stream(self.first)
                self.stack.forget_stream(turn["channel_id"])
            late = Reader(self.stack, chat["id"], channel=self.first)
            await late.follow()
            await late.go_on(turn["channel_id"])
            self.invariants.told(turn["id"], late, refused=refused or ())


def ran(invariants: Invariants, chat_id: str, *, lost: Sequence[str] = ()) -> Counter[str]:
    """What a chat has executed, each once and to its end, but for what was `lost` with its worker."""
    rows = [row for row in invariants.executions() if str(row["chat_id"]) == chat_id]
    for row in rows:
        if row["name"] in lost:
            assert (row["status"], row["cause"]) == ("FAILED", "interrupted"), row
            assert invariants.runs(row)[0] <= 1
        else:
            assert (row["status"], *invariants.runs(row)) == ("COMPLETED", 1, 1), row
    return Counter(row["name"] for row in rows)


def decided(stack: Stack, chat_id: str) -> Counter[str]:
    """What the user has decided in a chat."""
    return Counter(
        row["action"] for row in stack.rows("SELECT action FROM audit_log WHERE target = %(id)s", id=chat_id)
    )


async def asked_and_told(
    invariants: Invariants, asking: Asking, *, approved: bool = True, worker_lost: bool = False
) -> None:
    """The user decides and answers, and the agent comes to its end."""
    await asking.decide(approved=approved)
    await asking.answer()
    await asking.stack.happened()
    chat = await asking.follow()
    lost = [row["name"] for row in invariants.executions() if worker_lost and row["status"] == "FAILED"]
    assert lost in ([], ["once"])  # what he has just allowed
    refused = [] if approved else asking.ids[:1]
    said = f"You say blue, {approved and not lost}."
    await asking.is_settled(chat, *ASKED, said, refused=refused)
    assert ran(invariants, chat["id"], lost=lost) == {"again": 1, **({"once": 1} if approved else {})}
    decision = "approve_tool" if approved else "reject_tool"
    assert decided(asking.stack, chat["id"]) == {decision: 1, "answer_question": 1}


async def told(invariants: Invariants, point: Point, actions: str, *, approved: bool = True) -> None:
    """With a fault after the agent has begun to wait."""
    asking = Asking(invariants)
    await asking.begin()
    asking.stack.plan(*point, actions)
    await asked_and_told(invariants, asking, approved=approved, worker_lost=actions == "supervisor")


async def test_a_trace_has_these_points(stack: Stack, invariants: Invariants) -> None:
    asking = Asking(invariants)
    stack.forget_trace()
    await asking.begin()
    passed = await stack.trace("paused:after")
    steps = ("answered", "waits", "finished", "paused", "resume")
    assert [passed[f"{step}:committed"] for step in steps] == [1, 1, 1, 1, 0]
    stack.forget_trace()
    stack.plan("request:commit", 1, "")
    await asked_and_told(invariants, asking)
    passed = await stack.trace("expire:after")
    later = ("request", "answered", "tool", "finished", "completed", "sweep")
    assert [passed[f"{step}:committed"] for step in later] == [4, 0, 1, 2, 1, 0]


ASKING = [
    ("waits:commit", 1),
    ("waits:committed", 1),
    ("paused:commit", 1),
    ("paused:committed", 1),
    ("append:after", 6),  # after two pieces, two starts and an end, the user is told what to decide
]


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        *(pytest.param(*point, "agents", id=f"{point[0]}-agents") for point in ASKING),
        ("paused:commit", 1, "postgres"),
        ("paused:committed", 1, "lose"),
    ],
)
async def test_something_dies_while_the_agent_asks(invariants: Invariants, point: str, nth: int, actions: str) -> None:
    asking = Asking(invariants)
    await asking.begin((point, nth), actions)
    await asked_and_told(invariants, asking)


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        ("request:commit", 1, "api"),
        ("request:committed", 1, "api"),
        ("request:committed", 2, "api"),  # he was told where it is said that the question is still open
        ("request:commit", 3, "api"),
        ("request:committed", 3, "api"),
        ("request:commit", 1, "postgres"),
        ("request:commit", 3, "postgres"),
        ("request:committed", 1, "lose"),
        ("request:committed", 3, "lose"),
        ("request:committed", 3, "valkey"),
    ],
)
async def test_something_dies_while_the_user_decides(
    invariants: Invariants, point: str, nth: int, actions: str
) -> None:
    await told(invariants, (point, nth), actions)


async def test_everything_dies_when_the_user_has_decided(invariants: Invariants) -> None:
    await asyncio.gather(told(invariants, ("request:committed", 3), "supervisor"), invariants.stack.restart())


RESUMED = [
    ("turns.claim:committed", 1),
    ("tool:commit", 1),
    ("tool:committed", 1),
    ("finished:committed", 1),
    ("finished:commit", 2),
    ("finished:committed", 2),
]


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        *(pytest.param(*point, "agents", id="-".join(map(str, (*point, "agents")))) for point in RESUMED),
        ("turns.claim:commit", 1, "postgres"),
        ("append:after", 1, "flush agents"),
    ],
)
async def test_something_dies_when_the_agent_goes_on(
    invariants: Invariants, point: str, nth: int, actions: str
) -> None:
    await told(invariants, (point, nth), actions)


@pytest.mark.parametrize(
    ("point", "actions"),
    [("request:committed", "api"), ("turns.claim:committed", "agents"), ("finished:committed", "agents")],
)
async def test_something_dies_when_the_user_has_refused(invariants: Invariants, point: str, actions: str) -> None:
    await told(invariants, (point, 1), actions, approved=False)


@pytest.mark.parametrize(
    ("point", "actions"),
    [("sweep:commit", "scheduler"), ("sweep:committed", "scheduler"), ("sweep:commit", "postgres")],
)
async def test_something_dies_when_the_time_to_decide_is_over(
    invariants: Invariants, stack: Stack, point: str, actions: str
) -> None:
    asking = Asking(invariants)
    await asking.begin()
    stack.plan(point, 1, actions)
    stack.rows("UPDATE tool_calls SET wait_until = now() WHERE chat_id = %(id)s RETURNING 1", id=asking.chat_id)
    chat = await asking.follow()
    await stack.happened()
    said = "You say The user did not answer in time., False."
    await asking.is_settled(chat, *ASKED, said, refused=asking.ids[:1])
    assert ran(invariants, chat["id"]) == {"again": 1}
    async with stack.client() as client:
        late = await client.post(f"/chats/{chat['id']}/approve-tool/{asking.ids[0]}", json={"approved": True})
    assert late.status_code == 404
    assert decided(stack, chat["id"]) == {}


@pytest.mark.parametrize(("point", "actions"), [("request:committed", "api"), ("request:commit", "postgres")])
async def test_something_dies_when_the_user_says_something_else_instead(
    invariants: Invariants, stack: Stack, point: str, actions: str
) -> None:
    asking = Asking(invariants)
    await asking.begin()
    stack.plan(point, 1, actions)
    reader = Reader(stack, asking.chat_id, key=str(uuid4()))
    await reader.say("Do this instead.")
    await stack.happened()
    await invariants.ends()
    chat = await reader.chat()
    assert conversation(chat) == [*ASKED, "Do this instead.", "Something else, then."]
    invariants.told(chat["last_turn"]["id"], reader)
    turns = stack.rows("SELECT status FROM turns WHERE chat_id = %(id)s ORDER BY created_at", id=chat["id"])
    assert [turn["status"] for turn in turns] == ["CANCELLED", "COMPLETED"]
    assert ran(invariants, chat["id"]) == {"again": 1}


async def delegated(invariants: Invariants, asking: Asking) -> None:
    """The user approves what a called agent asks for, and both agents come to their ends."""
    stack = invariants.stack
    await asking.decide()
    await stack.happened()
    chat = await asking.follow()
    await asking.is_settled(chat, "go", "I ask.", "asks", "It said: It says True.")
    [child] = stack.rows("SELECT id::text FROM chats WHERE parent_chat_id = %(id)s", id=chat["id"])
    below = await stack.ask("GET", f"/chats/{child['id']}")
    assert conversation(below) == ["careful", "May I?", "once", "It says True."]
    assert ran(invariants, child["id"]) == {"once": 1}
    assert (decided(stack, chat["id"]), decided(stack, child["id"])) == ({}, {"approve_tool": 1})


BELOW = [("resume:commit", 1), ("resume:committed", 1), ("paused:committed", 2)]


@pytest.mark.parametrize(("point", "nth"), cases(BELOW))
async def test_the_agent_worker_dies_while_a_called_agent_asks(invariants: Invariants, point: str, nth: int) -> None:
    asking = Asking(invariants, "chief")
    await asking.begin((point, nth), "agents")
    await delegated(invariants, asking)


@pytest.mark.parametrize(
    ("point", "actions"),
    [
        ("request:committed", "api"),
        ("resume:commit", "api"),
        ("resume:commit", "postgres"),
        ("resume:committed", "lose"),
        ("completed:committed", "agents"),
    ],
)
async def test_something_dies_when_the_user_decides_for_a_called_agent(
    invariants: Invariants, point: str, actions: str
) -> None:
    asking = Asking(invariants, "chief")
    await asking.begin()
    invariants.stack.plan(point, 1, actions)
    await delegated(invariants, asking)

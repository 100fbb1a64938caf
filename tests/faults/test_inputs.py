"""Something dies while a function that an agent has called waits for the user: no answer is lost or used twice.

A function that is lost with its worker is not run again, and the agent and its user are told.
"""

import asyncio
from collections import Counter

import httpx2
import pytest

from tests.faults.harness import Json, Stack, eventually
from tests.faults.invariants import INTERRUPTED, Invariants, conversation
from tests.faults.reader import Reader, both
from tests.faults.test_turns import Point, each

ANSWERS = {"Which colour?": "blue", "How many of blue?": "7"}
SAID = "7 blue"
"""What the function makes of them."""
LAST_ANSWERED: Point = ("request:committed", 3)
"""Each answer is two transactions of a request."""


class Asked:
    """A chat whose agent's function asks the user, who answers as long as he is asked."""

    def __init__(self, invariants: Invariants) -> None:
        self.invariants = invariants
        self.stack = invariants.stack
        self.chat_id = ""
        self.readers: tuple[Reader, ...] = ()
        self.channels: list[str] = []
        self.answered: list[str] = []
        """The questions that he knows to have answered."""

    async def begin(self) -> None:
        """Until he is asked, or it comes to an end without."""
        made = await self.stack.ask("POST", "/agents/t/prompted/chats", {})
        self.chat_id = made["id"]
        self.readers = (Reader(self.stack, self.chat_id), Reader(self.stack, self.chat_id, hop=2))
        patient, restless = self.readers
        await both(patient, restless, "go")
        self.channels.append(str(patient.channel))

    async def finish(self, *, at_execution: bool = False) -> Json:
        """Answer until it ends; gives the chat as it is then."""
        while self._suspended():
            await self._answer(at_execution=at_execution)
            await self._follow()
        await self.invariants.ends()
        return await self.readers[0].chat()

    def _suspended(self) -> bool:
        ends = {reader.end.data.get("status") for reader in self.readers if reader.end is not None}
        assert len(ends) == 1, ends
        return ends == {"suspended"}

    async def _follow(self) -> None:
        async def goes_on() -> str | None:
            channel = str((await self.readers[0].chat())["last_turn"]["channel_id"])
            return channel if channel != self.channels[-1] else None

        self.channels.append(await eventually(goes_on, "it does not go on"))
        await asyncio.gather(*(reader.go_on(self.channels[-1]) for reader in self.readers))

    async def _answer(self, *, at_execution: bool) -> None:
        """Answer the question that is open, if one still is: until that is heard, or is not asked any more."""
        async with self.stack.client() as client:
            while open_one := await self._open(client):
                question = open_one["question"]
                path = f"/chats/{self.chat_id}/pending-input/{open_one['tool_call_id']}"
                if at_execution:  # where his last answer may have been heard, of which his chat may not know yet
                    row = self._execution()
                    question, path = row["prompt"], f"/executions/{row['id']}/continue"
                if question is None:
                    await asyncio.sleep(0.1)
                    continue
                said = ANSWERS[question]
                try:
                    told = await client.post(path, json={"input": said} if at_execution else {"answer": said})
                except httpx2.TransportError:
                    continue
                if told.status_code in (200, 202):
                    self.answered.append(question)
                    return
                assert told.status_code in (400, 404, 409, 503), told.text  # it has just ended, or nobody can know yet
                await asyncio.sleep(0.1)

    async def _open(self, client: httpx2.AsyncClient) -> Json | None:
        while True:
            try:
                found = await client.get(f"/chats/{self.chat_id}/pending-input")
            except httpx2.TransportError:
                continue
            if found.status_code == 200:
                return next(iter(found.json()), None)
            assert found.status_code == 503, found.text
            await asyncio.sleep(0.1)

    def _execution(self) -> Json:
        query = "SELECT id::text, prompt FROM executions WHERE chat_id = %(chat)s"
        return self.stack.rows(query, chat=self.chat_id)[0]

    async def is_settled(self, chat: Json, *, lost: bool | None) -> None:
        """The function ran once, with each answer once, or was lost; the agent knows which, and so does who reads.

        `lost` is None where it may have come to its end in the last moment.
        """
        [row] = self.invariants.executions()
        [told] = [message["content"] for message in chat["messages"] if message["role"] == "tool"]
        assert conversation(chat) == ["go", "It may ask.", "prompts", f"It says: {told}"]
        assert chat["last_turn"]["status"] == "COMPLETED"
        began, ended = self.invariants.runs(row)
        assert began == 1, row
        assert max(Counter(self.answered).values(), default=0) <= 1, "an answer that was heard is not asked for again"
        if lost or (lost is None and row["status"] == "FAILED"):
            assert (row["status"], row["cause"]) == ("FAILED", "interrupted"), row
            assert INTERRUPTED in told
        else:
            assert (row["status"], row["output_data"], row["pauses"], ended) == ("COMPLETED", SAID, 2, 1), row
            assert told == SAID
        async with self.stack.client() as client:
            assert (await client.get(f"/chats/{self.chat_id}/pending-input")).json() == []
        turn = chat["last_turn"]["id"]
        self.invariants.told(turn, *self.readers)
        for present in (True, False):
            if not present:
                for channel in self.channels:
                    self.stack.forget_stream(channel)
            late = Reader(self.stack, self.chat_id)
            for channel in self.channels:
                await late.go_on(channel)
            self.invariants.told(turn, late)


async def asked(
    invariants: Invariants, point: Point, actions: str, *, first: bool = False, at_execution: bool = False
) -> None:
    """With a fault: from the `first` moment on, or once the user has been asked."""
    asking = Asked(invariants)
    if first:
        asking.stack.plan(*point, actions)
    await asking.begin()
    if not first:
        asking.stack.plan(*point, actions)
    chat = await asking.finish(at_execution=at_execution)
    await asking.stack.happened()
    lost: bool | None = "functions" in actions.split() and not point[0].startswith("finish:committed")
    if lost and point == LAST_ANSWERED:  # who is given the last answer may be through before that is known
        lost = None
    await asking.is_settled(chat, lost=lost)


async def test_a_trace_has_these_points_and_no_more(stack: Stack, invariants: Invariants) -> None:
    asking = Asked(invariants)
    stack.plan("request:commit", 2, "")  # that it is asked
    stack.forget_trace()
    await asking.begin()
    passed = await stack.trace("paused:after", "input:committed")
    steps = ("input", "answered", "waits", "paused", "finished")
    assert [passed[f"{step}:committed"] for step in steps] == [1, 1, 1, 1, 0]
    stack.forget_trace()
    chat = await asking.finish()
    passed = await stack.trace("expire:after")
    later = ("request", "input", "waits", "paused", "tool", "finish", "finished", "completed")
    assert [passed[f"{step}:committed"] for step in later] == [4, 1, 1, 1, 0, 1, 1, 1]
    assert asking.answered == list(ANSWERS)
    await asking.is_settled(chat, lost=False)


def with_actions(points: list[Point], *actions: str) -> list[object]:
    """Each point with each of these faults, under readable names."""
    return [pytest.param(*point, what, id="-".join(map(str, (*point, what)))) for point in points for what in actions]


PAUSED = [("input:committed", 1), ("waits:committed", 1), ("paused:committed", 1)]
"""The execution pauses, its call waits, and the user is asked: one of each boundary (`test_turns.py`)."""


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        *with_actions([("input:commit", 1)], "functions"),
        *with_actions(PAUSED, "functions", "agents"),
        *with_actions([("input:commit", 1), ("paused:commit", 1)], "postgres"),
        *with_actions([("input:committed", 1), ("waits:committed", 1)], "lose"),
        *with_actions([("waits:committed", 1)], "flush agents"),
    ],
)
async def test_something_dies_at_the_pause(invariants: Invariants, point: str, nth: int, actions: str) -> None:
    await asked(invariants, (point, nth), actions, first=True)


ANSWERING = [("request:commit", 1), ("request:committed", 1), LAST_ANSWERED]
"""The first answer, and the second."""


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        *with_actions(ANSWERING, "functions", "api"),
        *with_actions([("request:committed", 2)], "api"),
        *with_actions([("request:commit", 1)], "postgres"),
        *with_actions([("request:committed", 1)], "agents", "lose", "valkey"),
    ],
)
async def test_something_dies_while_the_answer_is_on_its_way(
    invariants: Invariants, point: str, nth: int, actions: str
) -> None:
    await asked(invariants, (point, nth), actions)


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        *with_actions([("request:commit", 1)], "api"),
        *with_actions([("request:committed", 1)], "functions", "agents", "api"),
    ],
)
async def test_something_dies_while_it_is_answered_at_the_execution(
    invariants: Invariants, point: str, nth: int, actions: str
) -> None:
    await asked(invariants, (point, nth), actions, at_execution=True)


AFTERWARDS = [("input:after", 1), ("input:committed", 1), ("mark.ended", 1), ("finish:committed", 1)]
"""From the first answer on: the second pause is the first of those that come."""


@pytest.mark.parametrize(("point", "nth", "actions"), with_actions(AFTERWARDS, "functions"))
async def test_the_function_worker_dies_after_an_answer(
    invariants: Invariants, point: str, nth: int, actions: str
) -> None:
    await asked(invariants, (point, nth), actions)


RESUMED = [
    ("turns.claim:committed", 1),
    ("waits:committed", 1),
    ("finish:committed", 1),
    ("turns.claim:committed", 2),
    *each("finished", 1),
]


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        *with_actions(RESUMED, "agents"),
        *with_actions([("input:commit", 1), ("turns.claim:commit", 1), ("finish:commit", 1)], "postgres"),
        *with_actions([("finished:committed", 1)], "lose", "flush agents"),
    ],
)
async def test_something_else_dies_after_an_answer(invariants: Invariants, point: str, nth: int, actions: str) -> None:
    await asked(invariants, (point, nth), actions)


async def test_everything_dies_when_the_user_has_answered(invariants: Invariants) -> None:
    asking = Asked(invariants)
    await asking.begin()
    asking.stack.plan("request:committed", 1, "supervisor")
    chat, _ = await asyncio.gather(asking.finish(), asking.stack.restart())
    await asking.is_settled(chat, lost=True)

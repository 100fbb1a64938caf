"""Something dies while hooks look at what is said: each sees a message once, and what it made of it stays."""

from collections import Counter

import pytest

from tests.faults.harness import Stack
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader, both
from tests.faults.test_turns import cases, each

POINTS = [
    *each("hook", 2),  # on what the user says, and on the answer
    *each("heard", 1),
    *each("drafted", 1),
]


async def seen(invariants: Invariants, point: tuple[str, int], actions: str) -> None:
    """A turn with a fault, whose agent's hooks add a word."""
    stack = invariants.stack
    made = await stack.ask("POST", "/agents/t/seen/chats", {})
    patient, restless = Reader(stack, made["id"]), Reader(stack, made["id"], hop=2)
    stack.plan(*point, actions)
    chat = await both(patient, restless, "go")
    await stack.happened()
    await invariants.ends()
    said, answer = (message["content"] for message in chat["messages"])
    assert said == "go Seen."
    assert answer.startswith("I rolled") and answer.count("Seen.") == 1
    invariants.told(chat["last_turn"]["id"], patient, restless)
    rows = [row for row in invariants.executions() if str(row["chat_id"]) == chat["id"]]
    assert [(row["trigger_type"], row["status"], *invariants.runs(row)) for row in rows] == [
        ("HOOK", "COMPLETED", 1, 1)
    ] * 2


async def test_a_trace_has_these_points_and_no_more(stack: Stack, invariants: Invariants) -> None:
    stack.forget_trace()
    await seen(invariants, ("completed:before", 1), "")
    passed = await stack.trace("expire:after")
    assert {point: passed[point] for point, _ in POINTS} == Counter(point for point, _ in POINTS)


@pytest.mark.parametrize(("point", "nth"), cases(POINTS))
async def test_the_agent_worker_dies(invariants: Invariants, point: str, nth: int) -> None:
    await seen(invariants, (point, nth), "agents")


@pytest.mark.parametrize(("point", "actions"), [("heard:commit", "postgres"), ("drafted:committed", "lose")])
async def test_a_server_dies(invariants: Invariants, point: str, actions: str) -> None:
    await seen(invariants, (point, 1), actions)

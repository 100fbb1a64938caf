"""Something dies at each boundary of a turn that waits for another agent: both come to one end, in one chat each."""

from collections import Counter

import pytest

from tests.faults.harness import Stack
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader
from tests.faults.test_turns import Point, cases, each, talk

CALLED = [
    *each("delegate", 2),  # once to begin, once to hear what it said
    *each("waits", 1),
    *each("paused", 1),
]
RESUMED = [
    *each("turns.claim", 3, "after"),  # the caller, the called, the caller again
    *each("completed", 2),
    *each("resume", 1),
    *each("finished", 1),
]
BOTH: list[Point] = [*CALLED, *RESUMED]


async def test_a_trace_has_these_points_and_no_more(stack: Stack, invariants: Invariants) -> None:
    stack.plan("none", 1, "")
    chat = await stack.ask("POST", "/agents/t/boss/chats", {})
    stack.forget_trace()
    reader = Reader(stack, chat["id"])
    done = await reader.say("go")
    invariants.answered(done, reader)
    await invariants.delegated(done)
    await invariants.ends()
    passed = await stack.trace("expire:after")
    most = Counter(point for point, _ in BOTH)
    assert {point: passed[point] for point in most} == dict(most)


@pytest.mark.parametrize(("point", "nth"), cases(BOTH))
async def test_the_agent_worker_dies(invariants: Invariants, point: str, nth: int) -> None:
    chat, _ = await talk(invariants, (point, nth), "agents", "boss")
    await invariants.delegated(chat)


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        ("delegate:committed", 1, "postgres"),
        ("paused:commit", 1, "postgres"),
        ("completed:committed", 1, "postgres"),
        ("resume:commit", 1, "postgres"),
        ("delegate:committed", 1, "flush agents"),
        ("waits:committed", 1, "flush agents"),
        ("paused:committed", 1, "flush agents"),
        ("resume:committed", 1, "flush agents"),
        ("delegate:before", 2, "flush agents"),
    ],
)
async def test_a_server_dies(invariants: Invariants, point: str, nth: int, actions: str) -> None:
    chat, _ = await talk(invariants, (point, nth), actions, "boss")
    await invariants.delegated(chat)

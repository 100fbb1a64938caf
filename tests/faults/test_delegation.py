"""Something dies at each boundary of a turn that waits for another agent: both come to one end, in one chat each."""

from collections import Counter

import pytest

from tests.faults.harness import Stack
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader
from tests.faults.test_turns import Point, cases, each, talk

CALLED = [
    *each("delegate", 2, "before commit committed after"),  # once to begin, once to hear what it said
    *each("waits", 1),
    *each("paused", 1),
]
RESUMED = [
    *each("turns.claim", 3, "before after"),  # the caller, the called, the caller again
    *each("completed", 2),
    *each("resume", 1, "before commit committed after"),
    *each("finished", 1),
]
BOTH: list[Point] = [*CALLED, *RESUMED]
ALWAYS = [point for point in BOTH if point != ("turns.claim:before", 3)]
"""Without the third claim: a look for work that finds two turns at once spares it, so it may never come."""


async def test_a_trace_has_these_points_and_no_more(stack: Stack, invariants: Invariants) -> None:
    stack.plan("none", 1, "")
    chat = await stack.ask("POST", "/agents/t/boss/chats", {})
    stack.forget_trace()
    reader = Reader(stack, chat["id"])
    done = await reader.say("go")
    invariants.answered(done, reader)
    await invariants.delegated(done)
    await invariants.ends()
    passed = Counter(await stack.trace("expire:after"))
    most = Counter(point for point, _ in BOTH if point != "turns.claim:before")  # only passed where it is planned
    assert {point: passed[point] for point in most} == dict(most)


@pytest.mark.parametrize(("point", "nth"), cases(ALWAYS))
async def test_the_agent_worker_dies(invariants: Invariants, point: str, nth: int) -> None:
    chat, _ = await talk(invariants, (point, nth), "agents", "boss")
    await invariants.delegated(chat)


@pytest.mark.parametrize("actions", ["postgres", "flush agents"])
@pytest.mark.parametrize(
    ("point", "nth"),
    cases(
        [
            ("delegate:committed", 1),
            ("waits:committed", 1),
            ("paused:commit", 1),
            ("paused:committed", 1),
            ("completed:committed", 1),
            ("resume:commit", 1),
            ("resume:committed", 1),
            ("delegate:before", 2),
        ]
    ),
)
async def test_a_server_dies(invariants: Invariants, point: str, nth: int, actions: str) -> None:
    chat, _ = await talk(invariants, (point, nth), actions, "boss")
    await invariants.delegated(chat)

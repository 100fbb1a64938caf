"""Something dies at each boundary of an execution: it comes to its one end (decision 29), and who waits hears it."""

from contextlib import suppress

import httpx2
import pytest

from tests.faults.harness import Json, Stack
from tests.faults.invariants import Invariants

CLAIM = ("functions.claim:before", "functions.claim:commit", "functions.claim:committed")
"""Passed only where they are planned, because a worker often looks in vain."""
MIDDLE = ("mark.began", "mark.ended", "finish:commit")
"""Where the code has begun and nothing is known of its end."""
POINTS = (*CLAIM, "sandbox:before", *MIDDLE, "finish:committed")
"""One of each boundary (`test_turns.py`)."""
RETRIES = 2
"""As `stack.py` sets it."""


async def execute(stack: Stack, **given: object) -> Json:
    return await stack.ask("POST", "/functions/t/once/execute", {"input": given})


async def test_a_trace_has_all_the_points(stack: Stack, invariants: Invariants) -> None:
    stack.plan("none", 1, "")
    stack.forget_trace()
    await execute(stack)
    await invariants.ends()
    passed = await stack.trace("finish:after")
    assert not set(POINTS) - set(passed) - set(CLAIM)


@pytest.mark.parametrize("point", POINTS)
async def test_the_worker_dies_in_a_synchronous_execution(stack: Stack, invariants: Invariants, point: str) -> None:
    stack.plan(point, 1, "functions")
    answer = await execute(stack)
    await stack.happened()
    assert answer["status"] == "success", answer
    await invariants.ends()
    (row,) = invariants.executions()
    assert row["output_data"] == answer["result"]
    assert invariants.runs(row)[0] == (2 if point in MIDDLE else 1)


@pytest.mark.parametrize("point", ["functions.claim:committed", *MIDDLE, "finish:committed"])
async def test_the_worker_dies_in_one_that_is_retried(stack: Stack, invariants: Invariants, point: str) -> None:
    stack.plan(point, 1, "functions")
    await stack.ask("POST", "/functions/t/once/execute/async", {"input": {"raises": True}})
    await invariants.ends()
    await stack.happened()
    (row,) = invariants.executions()
    assert (row["status"], row["failures"]) == ("FAILED", 1 + RETRIES)
    assert invariants.runs(row)[0] == 1 + RETRIES + (point in MIDDLE)


@pytest.mark.parametrize("point", ["functions.claim:committed", "finish:committed"])
async def test_an_answer_of_the_database_gets_lost(stack: Stack, invariants: Invariants, point: str) -> None:
    stack.plan(point, 1, "lose")
    answer = await execute(stack)
    await stack.happened()
    assert answer["status"] == "success"
    await invariants.ends()
    (row,) = invariants.executions()
    assert invariants.runs(row) == (1, 1)


NOTICED = ("functions.claim:before", "functions.claim:committed", "mark.began", "finish:committed")
"""Where something may depend on Redis."""


@pytest.mark.parametrize(
    ("point", "server"),
    [
        *((point, "postgres") for point in POINTS),
        *((point, server) for point in NOTICED for server in ("valkey", "flush")),
    ],
)
async def test_a_server_dies(stack: Stack, invariants: Invariants, point: str, server: str) -> None:
    stack.plan(point, 1, server)
    answer = await execute(stack)
    await stack.happened()
    assert answer["status"] == "success"
    await invariants.ends()
    (row,) = invariants.executions()
    assert invariants.runs(row) == (1, 1)


@pytest.mark.parametrize("victim", ["postgres", "api"])
@pytest.mark.parametrize("point", ["request:commit", "request:committed", "mark.began"])
async def test_a_caller_who_gets_no_answer(stack: Stack, invariants: Invariants, point: str, victim: str) -> None:
    """He cannot know whether he was heard; what was begun ends all the same."""
    stack.plan(point, 1, victim)
    async with stack.client() as client:
        try:
            answer = await client.post("/functions/t/once/execute", json={"input": {}})
            assert answer.status_code in (200, 503), answer.text
            status: int | None = answer.status_code
        except httpx2.TransportError:
            status = None
    await stack.happened()
    await stack.whole()
    await invariants.ends()
    rows = invariants.executions()
    assert len(rows) == 1 or (status != 200 and point == "request:commit" and not rows)
    for row in rows:
        assert row["status"] == "COMPLETED"
        assert invariants.runs(row) == (1, 1)
    if not rows:
        await execute(stack)


@pytest.mark.parametrize("point", ["functions.claim:after", "mark.began", "finish:commit", "finish:committed"])
async def test_everything_dies(stack: Stack, invariants: Invariants, point: str) -> None:
    stack.plan(point, 1, "supervisor")
    with suppress(httpx2.TransportError):  # it may even end before the answer of the API, which dies too, is on its way
        await stack.ask("POST", "/functions/t/once/execute/async", {"input": {}})
    await stack.restart()
    await invariants.ends()
    (row,) = invariants.executions()
    assert row["status"] == "COMPLETED"
    assert invariants.runs(row)[0] == (2 if point in MIDDLE else 1)

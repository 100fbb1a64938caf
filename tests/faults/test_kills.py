"""Function workers are killed at random while many executions run: each has one end, recorded once.

`pytest tests/faults/test_kills.py --executions 10000` does it with ten thousand, and prints what happened.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict

import httpx2
import pytest

from sinas_server.functions.jobs import MAX_LOST
from sinas_server.functions.tables import Cause
from tests.faults.harness import PATIENCE, Json, Stack
from tests.faults.invariants import Invariants

SEED = 29
MANY = 100
"""About so many kills, in a long run."""
LEAST = 3
"""So many at least: if all has ended before, because this process stood still meanwhile, there is more to do."""
BATCH = 500
CALLERS = 500
PER_EXECUTION = 3.0  # seconds; only a broken stack needs them


@pytest.fixture
def executions(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--executions", default=300))


async def _order(stack: Stack, executions: int) -> list[str]:
    """Have so many wait for a worker; their ids."""
    ids: list[str] = []
    for first in range(0, executions, BATCH):
        inputs = [{"number": number} for number in range(first, min(first + BATCH, executions))]
        batch = await stack.ask("POST", "/functions/t/once/execute/batch", {"inputs": inputs})
        ids += batch["execution_ids"]
    return ids


async def _kill_until_all_ended(stack: Stack, ids: list[str], dice: random.Random) -> int:
    """Kill the worker each time some more have ended, so that work goes on however slow the machine is; how often."""
    query = "SELECT count(completed_at) AS n FROM executions WHERE id = ANY(%(ids)s)"
    most = max(2 * len(ids) // MANY, 40)
    kills, next_kill = 0, dice.randint(1, most)
    async with asyncio.timeout(PATIENCE + PER_EXECUTION * len(ids)):
        while (ended := stack.rows(query, ids=ids)[0]["n"]) < len(ids):
            if ended >= next_kill:
                await asyncio.sleep(dice.uniform(0, 0.1))
                stack.kill("functions")
                kills, next_kill = kills + 1, ended + dice.randint(1, most)
            await asyncio.sleep(0.02)
    return kills


def _marks(stack: Stack, ids: set[str]) -> dict[str, Counter[str]]:
    """How often the code of each execution began, and how often it came to its end: runs, each counted once."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for mark in set(stack.marks()):
        word, execution_id, _ = mark.split(".")
        if execution_id in ids:
            found[execution_id][word] += 1
    return found


@pytest.mark.timeout(0)
async def test_each_execution_reaches_one_end_through_random_kills(
    stack: Stack, invariants: Invariants, executions: int
) -> None:
    ids: list[str] = []
    began, kills = time.monotonic(), 0
    dice = random.Random(SEED)  # noqa: S311 - not about secrets
    while kills < LEAST:
        fresh = await _order(stack, executions)
        ids += fresh
        kills += await _kill_until_all_ended(stack, fresh, dice)
    seconds = time.monotonic() - began
    rows: list[Json] = stack.rows(
        "SELECT id::text, status, attempt, failures, cause, output_data FROM executions WHERE id = ANY(%(ids)s)",
        ids=ids,
    )
    ends = Counter(row["id"] for row in stack.rows("SELECT id::text FROM fault_ends WHERE id = ANY(%(ids)s)", ids=ids))
    marks = _marks(stack, set(ids))
    assert len(rows) == len(ids)
    assert [row for row in rows if ends[row["id"]] != 1] == []
    for row in rows:
        runs = marks[row["id"]]
        # Code whose worker was lost after its last line runs again: as often as attempts were made, and no more.
        assert runs["ended"] <= runs["began"] <= row["attempt"], (row, runs)
        if row["cause"] == Cause.INTERRUPTED.value:  # it ran at each of too many kills: taken for their cause
            assert row["attempt"] - row["failures"] == MAX_LOST + 1, row
            continue
        assert runs["ended"] >= 1, (row, runs)
        assert row["status"] == "COMPLETED", row
        assert row["output_data"]["run"].startswith(row["id"]), row
    given_up = sum(row["cause"] is not None for row in rows)
    assert given_up <= len(rows) // 20  # a worker runs few at a time
    again = sum(marks[row["id"]]["ended"] > 1 for row in rows)
    lost = sum(row["attempt"] - 1 - row["failures"] for row in rows)
    print(
        f"{len(ids)} executions in {seconds:.0f} s through {kills} kills, each with one end; "
        f"{lost} attempts lost their worker, {again} executions had their side effects more than once, "
        f"{given_up} were given up"
    )


@pytest.mark.timeout(600)
async def test_five_hundred_callers_wait_and_none_fails(stack: Stack, invariants: Invariants) -> None:
    limits = httpx2.Limits(max_connections=CALLERS, max_keepalive_connections=0)
    headers = {"Authorization": f"Bearer {stack.address('key')}"}
    base = f"http://127.0.0.1:{stack.port}"
    async with httpx2.AsyncClient(base_url=base, headers=headers, limits=limits, timeout=500, verify=False) as client:
        answers = await asyncio.gather(
            *(client.post("/functions/t/echo/execute", json={"input": {"number": number}}) for number in range(CALLERS))
        )
    assert Counter(answer.status_code for answer in answers) == {200: CALLERS}
    assert Counter(answer.json()["status"] for answer in answers) == {"success": CALLERS}
    assert [answer.json()["result"]["number"] for answer in answers] == list(range(CALLERS))

"""Something dies at each boundary of a turn: it comes to its one end, and readers miss and repeat nothing.

A boundary lies between two writes. Points between the same two are one boundary, and one of them is enough: `x:after`
leaves the servers as the `y:before` does that follows, and of a transaction that was begun and not committed nothing is
left, so that `x:commit` stands for `x:before` too.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.faults.harness import Json, Stack
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader, both

Point = tuple[str, int]


def each(step: str, times: int, moments: str = "commit committed") -> list[Point]:
    """The points of a step that a turn passes so many times."""
    return [(f"{step}:{moment}", n + 1) for n in range(times) for moment in moments.split()]


APPENDS = 10  # two pieces of the first answer, two calls start, two end, three pieces of the last answer, the end
JOURNAL = [
    *each("answered", 1),
    *each("finished", 2),
    *each("completed", 1),
]
TURN = [
    *each("turns.claim", 1, "before after"),
    *each("create", 1, "after"),
    *each("append", APPENDS, "before"),
    *JOURNAL,
    *each("tool", 2),
    *each("expire", 1, "before"),
    ("mark.began", 1),
]
LOSABLE = [
    ("create:after", 1),
    *(("append:after", nth) for nth in (2, 3, 5, APPENDS)),  # text, a start, an end, the end
    ("finished:committed", 1),
    ("tool:committed", 1),
    ("answered:committed", 1),
    ("completed:committed", 1),
    ("expire:after", 1),
]
FORGETFUL = {
    "flush": [
        ("append:after", 2),
        ("answered:committed", 1),
        ("mark.began", 2),
        ("append:after", 5),
        ("append:after", 8),
        ("completed:committed", 1),
    ],
    "valkey": [("turns.claim:after", 1), ("append:after", 4), ("append:before", 7), ("append:after", APPENDS)],
    "flush agents": [
        ("create:after", 1),
        ("append:after", 2),
        ("append:after", 4),
        ("finished:committed", 1),
        ("append:before", 7),
        ("append:after", 8),
        ("completed:committed", 1),
    ],
    "valkey agents": [("append:after", 5)],
}
"""How Redis loses everything, and whether the worker dies too, who could write it again: in all phases of a turn."""
QUERIES = [
    ("request:commit", 1),
    ("request:committed", 1),
    *each("turns.claim", 1, "before after"),
    *each("functions.claim", 1, "before commit committed after"),
    ("prepare:before", 1),
    ("ask:before", 2),
    *each("answered", 1),
    *each("finished", 2),
    *each("completed", 1, "before commit committed"),
    *each("tool", 1, "before commit committed"),
    *each("begin", 1, "before commit committed"),
    ("mark.began", 2),
    *each("finish", 1, "before commit committed"),
]
"""Where a statement, the commit or the next statement finds no database, for each way of asking it."""
EXECUTION = [
    *each("functions.claim", 1),
    *each("begin", 1),
    ("begin:committed", 2),
    ("mark.began", 1),
    ("mark.ended", 2),
    *each("finish", 1),
    ("finish:committed", 2),
]
REQUEST = [*each("request", 1), *(("sse:before", nth) for nth in (2, 5, 9, 12))]


def cases(points: Iterable[Point]) -> list[object]:
    """Points as parameters with readable names."""
    return [pytest.param(*point, id=f"{point[0]}-{point[1]}") for point in points]


async def talk(invariants: Invariants, point: Point, actions: str, agent: str = "agent") -> tuple[Json, list[Reader]]:
    """A turn with a fault, a client that reads on when its connection breaks, and one that lets it break all the time.

    Gives the chat as it was right after the end, and what the two have read.
    """
    stack = invariants.stack
    made = await stack.ask("POST", f"/agents/t/{agent}/chats", {})
    stack.plan(*point, actions)
    chat_id = made["id"]
    patient, restless = Reader(stack, chat_id), Reader(stack, chat_id, hop=2)
    chat = await both(patient, restless, "go")
    await stack.happened()
    invariants.answered(chat, patient, restless)
    await invariants.ends()
    return chat, [patient, restless]


async def read_again(invariants: Invariants, chat: Json, channel: str | None) -> None:
    """Who comes late reads the same, from Redis or without it."""
    for present in (True, False):
        if not present:
            invariants.stack.forget_stream(channel)
        late = Reader(invariants.stack, chat["id"], channel=channel)
        await late.follow()
        invariants.answered(chat, late)


async def test_a_trace_has_these_points_and_no_more(stack: Stack, invariants: Invariants) -> None:
    stack.plan("none", 1, "")
    chat = await stack.ask("POST", "/agents/t/agent/chats", {})
    stack.forget_trace()
    reader = Reader(stack, chat["id"])
    invariants.answered(await reader.say("go"), reader)
    await invariants.ends()
    passed = await stack.trace("expire:after")
    steps = {"create": 1, "append": APPENDS, "answered": 1, "finished": 2, "tool": 2, "completed": 1}
    assert {step: passed[f"{step}:after"] for step in steps} == steps
    commits = [point for point in passed if point.endswith(":committed")]
    killed = Counter(point for point, _ in [*TURN, *EXECUTION, *REQUEST])
    assert {point: passed[point] for point in commits} == {point: killed[point] for point in commits}


@pytest.mark.parametrize(("point", "nth"), cases(TURN))
async def test_the_agent_worker_dies(invariants: Invariants, point: str, nth: int) -> None:
    chat, readers = await talk(invariants, (point, nth), "agents")
    invariants.called(chat)
    unknown = point == "turns.claim:after"  # nobody can know that nothing was sent
    assert [reader.restarts for reader in readers] == [int(unknown)] * 2
    await read_again(invariants, chat, readers[0].channel)


@pytest.mark.parametrize(("point", "nth"), cases(LOSABLE))
async def test_an_answer_of_a_server_gets_lost(invariants: Invariants, point: str, nth: int) -> None:
    chat, readers = await talk(invariants, (point, nth), "lose")
    invariants.called(chat)
    assert [reader.restarts for reader in readers] == [0, 0]


@pytest.mark.parametrize(
    ("point", "nth", "actions"), [(*point, actions) for actions, points in FORGETFUL.items() for point in points]
)
async def test_redis_dies_or_forgets_everything(invariants: Invariants, point: str, nth: int, actions: str) -> None:
    chat, readers = await talk(invariants, (point, nth), actions)
    invariants.called(chat)
    if actions in ("flush", "valkey"):
        assert [reader.restarts for reader in readers] == [0, 0]


@pytest.mark.parametrize(("point", "nth"), cases(QUERIES))
async def test_the_database_dies(invariants: Invariants, point: str, nth: int) -> None:
    chat, _ = await talk(invariants, (point, nth), "postgres")
    invariants.called(chat)


@pytest.mark.parametrize(("point", "nth"), cases(EXECUTION))
async def test_the_function_worker_dies_in_a_tool_call(invariants: Invariants, point: str, nth: int) -> None:
    chat, readers = await talk(invariants, (point, nth), "functions")
    invariants.called(chat, worker_lost=True)
    assert [reader.restarts for reader in readers] == [0, 0]


@pytest.mark.parametrize(("point", "nth"), cases(REQUEST))
async def test_the_api_dies(invariants: Invariants, point: str, nth: int) -> None:
    chat, readers = await talk(invariants, (point, nth), "api")
    invariants.called(chat)
    assert [reader.restarts for reader in readers] == [0, 0]


EVERYTHING = [("turns.claim:after", 1), ("append:after", 2), ("finished:committed", 1), ("completed:committed", 1)]


@pytest.mark.parametrize(("point", "nth"), cases(EVERYTHING))
async def test_everything_dies(invariants: Invariants, point: str, nth: int) -> None:
    (chat, _), _ = await asyncio.gather(talk(invariants, (point, nth), "supervisor"), invariants.stack.restart())
    invariants.called(chat, worker_lost=True)


@pytest.mark.parametrize("actions", ["agents", "flush agents"])
@pytest.mark.parametrize(("point", "nth"), cases([("append:before", 2), ("append:before", 4), *each("completed", 1)]))
async def test_an_answer_is_cut_off_and_differs_the_next_time(
    invariants: Invariants, point: str, nth: int, actions: str
) -> None:
    chat, readers = await talk(invariants, (point, nth), actions, "dice")
    await read_again(invariants, chat, readers[0].channel)

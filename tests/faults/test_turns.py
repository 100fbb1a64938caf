"""Something dies at each boundary of a turn: it comes to its one end, and readers miss and repeat nothing."""

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.faults.harness import Json, Stack, eventually
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader

Point = tuple[str, int]


def each(step: str, times: int, moments: str = "before commit committed") -> list[Point]:
    """The points of a step that a turn passes so many times."""
    return [(f"{step}:{moment}", n + 1) for n in range(times) for moment in moments.split()]


APPENDS = 10  # two pieces of the first answer, two calls start, two end, three pieces of the last answer, the end
JOURNAL = [
    *each("answered", 1),
    *each("finished", 2),
    *each("completed", 1),
]
SENT = [*each("create", 1, "before after"), *each("append", APPENDS, "before after")]
TOOLS = each("tool", 2, "before commit committed after")
TURN = [
    *each("turns.claim", 1, "before after"),
    ("ask:before", 1),
    ("ask:before", 2),
    *SENT,
    *JOURNAL,
    *TOOLS,
    *each("expire", 1, "before after"),
    ("mark.began", 1),
    ("mark.ended", 2),
]
PHASES = [
    ("turns.claim:after", 1),
    ("create:after", 1),
    ("append:after", 2),
    ("answered:committed", 1),
    ("append:after", 4),
    ("mark.began", 2),
    ("finished:committed", 1),
    ("append:after", 5),
    ("append:before", 7),
    ("append:after", 8),
    ("completed:committed", 1),
    ("append:after", 10),
]
LOSABLE = [
    ("create:after", 1),
    *each("append", APPENDS, "after"),
    *each("finished", 2, "committed"),
    *each("tool", 2, "committed"),
    ("answered:committed", 1),
    ("completed:committed", 1),
    ("expire:after", 1),
]
QUERIES = [
    ("request:commit", 1),
    ("request:committed", 1),
    *each("turns.claim", 1, "before after"),
    *each("functions.claim", 1, "before commit committed after"),
    ("prepare:before", 1),
    ("ask:before", 1),
    ("ask:before", 2),
    *JOURNAL,
    *each("tool", 2, "before commit committed"),
    *each("begin", 2, "before commit committed"),
    ("mark.began", 2),
    *each("finish", 2, "before commit committed"),
]
EXECUTION = [
    *each("functions.claim", 1, "before commit committed after"),
    *each("begin", 2, "before commit committed"),
    ("mark.began", 1),
    ("mark.began", 2),
    ("mark.ended", 2),
    *each("finish", 2, "before commit committed"),
]


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

    async def hop() -> Json:
        async def is_open() -> bool:
            return patient.channel is not None

        await eventually(is_open, "no channel")
        restless.channel = patient.channel
        return await restless.follow()

    chat, _ = await asyncio.gather(patient.say("go"), hop())
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
    passed = Counter(await stack.trace("expire:after"))
    known = {point for point, _ in [*SENT, *JOURNAL, *TOOLS, ("turns.claim:after", 1)]}
    most = {point: max(nth for name, nth in TURN if name == point) for point in known}
    assert {point: passed[point] for point in known} == most


@pytest.mark.parametrize(("point", "nth"), cases(TURN))
async def test_the_agent_worker_dies(invariants: Invariants, point: str, nth: int) -> None:
    chat, readers = await talk(invariants, (point, nth), "agents")
    invariants.called(chat)
    unknown = point in {"turns.claim:after", "create:before"}  # nobody can know that nothing was sent
    assert [reader.restarts for reader in readers] == [int(unknown)] * 2
    await read_again(invariants, chat, readers[0].channel)


@pytest.mark.parametrize(("point", "nth"), cases(LOSABLE))
async def test_an_answer_of_a_server_gets_lost(invariants: Invariants, point: str, nth: int) -> None:
    chat, readers = await talk(invariants, (point, nth), "lose")
    invariants.called(chat)
    assert [reader.restarts for reader in readers] == [0, 0]


@pytest.mark.parametrize("actions", ["flush", "valkey", "flush agents", "valkey agents"])
@pytest.mark.parametrize(("point", "nth"), cases(PHASES))
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


@pytest.mark.parametrize(("point", "nth"), cases([*each("request", 1, "commit committed"), *each("sse", 12, "before")]))
async def test_the_api_dies(invariants: Invariants, point: str, nth: int) -> None:
    chat, readers = await talk(invariants, (point, nth), "api")
    invariants.called(chat)
    assert [reader.restarts for reader in readers] == [0, 0]


@pytest.mark.parametrize(("point", "nth"), cases(PHASES[::2]))
async def test_everything_dies(invariants: Invariants, point: str, nth: int) -> None:
    (chat, _), _ = await asyncio.gather(talk(invariants, (point, nth), "supervisor"), invariants.stack.restart())
    invariants.called(chat, worker_lost=True)


@pytest.mark.parametrize("actions", ["agents", "flush agents"])
@pytest.mark.parametrize(("point", "nth"), cases([*each("append", 6, "before after"), *each("completed", 1)]))
async def test_an_answer_is_cut_off_and_differs_the_next_time(
    invariants: Invariants, point: str, nth: int, actions: str
) -> None:
    chat, readers = await talk(invariants, (point, nth), actions, "dice")
    await read_again(invariants, chat, readers[0].channel)

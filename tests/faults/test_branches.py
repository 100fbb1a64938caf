"""Something dies while a message is answered again: one branch more, one turn more, and nothing else changes."""

from uuid import uuid4

import pytest

from tests.faults.conftest import FUNCTIONS, RULES, add_agent
from tests.faults.harness import Json, Stack
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader
from tests.faults.test_turns import cases, each

WAYS = ["regenerate", "edit"]
BEGINNING = [
    ("request:commit", "api"),
    ("request:committed", "api"),
    ("request:commit", "postgres"),
    ("request:committed", "lose"),
]
BRANCHING = [
    ("answered:committed", 1),
    ("tool:committed", 1),
    *each("finished", 2),
    *each("completed", 1),
]
"""Where something is written on a branch; what else a turn does, it does there as anywhere (`test_turns.py`)."""


async def again(stack: Stack, way: str, point: tuple[str, int], actions: str) -> None:
    """A message that was answered is answered again with a fault."""
    invariants = Invariants(stack)
    made = await stack.ask("POST", "/agents/t/agent/chats", {})
    first = Reader(stack, made["id"])
    before = await first.say("go")
    await invariants.ends()
    anew = Invariants(stack)
    stack.plan(*point, actions)
    said = before["messages"][0]["id"]
    reader = Reader(stack, made["id"], path=f"messages/{said}/{way}/stream", key=str(uuid4()))
    chat = await reader.say("go there")
    await stack.happened()
    anew.answered(chat, reader)
    anew.called(chat)
    assert reader.restarts == 0
    await anew.ends()
    await _one_more(stack, before, chat)
    anew.check()


async def _one_more(stack: Stack, before: Json, after: Json) -> None:
    """There is one branch and one turn more than before, and what was said before is as it was."""
    chat = before["id"]
    assert (before["branch"], after["branch"]) == (0, 1)
    [branch] = stack.rows("SELECT number FROM branches WHERE chat_id = %(chat)s", chat=chat)
    assert branch["number"] == 1
    turns = stack.rows("SELECT branch, status FROM turns WHERE chat_id = %(chat)s ORDER BY branch", chat=chat)
    assert turns == [{"branch": number, "status": "COMPLETED"} for number in (0, 1)]
    await stack.ask("PUT", f"/chats/{chat}/branch", {"branch": 0})
    kept = (await stack.ask("GET", f"/chats/{chat}"))["messages"]
    assert [{**message, "sibling_ids": []} for message in kept] == before["messages"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("point", "actions"), BEGINNING)
async def test_something_dies_when_it_begins(stack: Stack, way: str, point: str, actions: str) -> None:
    await again(stack, way, (point, 1), actions)


@pytest.mark.parametrize(("point", "nth"), cases(BRANCHING))
async def test_the_agent_worker_dies(stack: Stack, point: str, nth: int) -> None:
    await again(stack, "regenerate", (point, nth), "agents")


async def retried(stack: Stack, point: tuple[str, int], actions: str) -> None:
    """A turn that failed after its tools were called is tried again with a fault."""
    invariants = Invariants(stack)
    name = f"faulty{uuid4().hex[:8]}"
    broken = [RULES[0], {**RULES[1], "answer": "{{ results['t/once'].nothing.more }}"}]
    await add_agent(stack, name, broken, [f"t/{function}" for function in FUNCTIONS])
    made = await stack.ask("POST", f"/agents/t/{name}/chats", {})
    failed = await Reader(stack, made["id"]).say("go")
    await invariants.ends()
    assert failed["last_turn"]["status"] == "FAILED"
    await stack.ask("PUT", f"/api/v1/llm-providers/{name}", {"config": {"rules": RULES}})
    stack.plan(*point, actions)
    chat = await Reader(stack, made["id"], path="retry/stream", key=str(uuid4())).say("")
    await stack.happened()
    await invariants.ends()
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "tool", "tool", "assistant"]
    assert chat["messages"][:4] == failed["messages"]
    assert chat["messages"][4]["content"] == "They say True, True."
    assert (chat["branch"], chat["last_turn"]["status"]) == (0, "COMPLETED")
    invariants.called(chat)
    turns = stack.rows("SELECT status FROM turns WHERE chat_id = %(chat)s ORDER BY created_at", chat=made["id"])
    assert [turn["status"] for turn in turns] == ["FAILED", "COMPLETED"]
    invariants.check()


@pytest.mark.parametrize(("point", "actions"), BEGINNING)
async def test_something_dies_when_a_turn_is_tried_again(stack: Stack, point: str, actions: str) -> None:
    await retried(stack, (point, 1), actions)


@pytest.mark.parametrize(("point", "nth"), cases([("ask:before", 1), *each("completed", 1)]))
async def test_the_agent_worker_dies_in_another_try(stack: Stack, point: str, nth: int) -> None:
    await retried(stack, (point, nth), "agents")

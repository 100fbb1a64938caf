"""Something dies while older messages are summarized: the summary is made, kept and paid once, and the turn goes on."""

import pytest

from tests.faults.harness import Stack
from tests.faults.invariants import Invariants
from tests.faults.test_turns import each

QUESTIONS = 6
"""As many exchanges as the model is given."""


SPENT = each("spent", 1)


@pytest.mark.parametrize(
    ("point", "nth", "actions"),
    [
        ("summarize:before", 1, "agents"),
        *((*point, actions) for point in SPENT for actions in ("agents", "postgres")),
    ],
)
async def test_it_dies(stack: Stack, invariants: Invariants, point: str, nth: int, actions: str) -> None:
    chat = await stack.ask("POST", "/agents/t/recalls/chats", {})
    path = f"/chats/{chat['id']}/messages"
    for number in range(QUESTIONS):
        await stack.ask("POST", path, {"content": f"question {number}"})
    stack.plan(point, nth, actions)
    answer = await stack.ask("POST", path, {"content": "one more question"})
    await stack.happened()
    await invariants.ends()
    assert answer["status"] == "completed", answer
    rows = stack.rows("SELECT content, messages FROM summaries WHERE chat_id = %(chat)s", chat=chat["id"])
    assert [tuple(row.values()) for row in rows] == [("Six questions.", 8)]
    spent = stack.rows(
        "SELECT u.step FROM usage u JOIN messages m USING (turn_id) WHERE m.id = %(answer)s", answer=answer["id"]
    )
    assert sorted(row["step"] is None for row in spent) == [False, True], "one answer and one summary"

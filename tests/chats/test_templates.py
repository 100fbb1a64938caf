"""Templates that agents' authors write: none of them may stop the others' chats."""

import asyncio

import pytest

from tests.chats.conftest import Declare, open_chat, stream, text_of
from tests.people import Person

ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.usefixtures("worker")
async def test_a_template_without_end_fails_its_turn_and_no_other(declare: Declare, user: Person) -> None:
    prompt = await declare("prompt", system_prompt=ENDLESS)
    answer = await declare("answer", default=ENDLESS)
    plain = await declare("plain", system_prompt="{% for a in [1] %}You help {{ who }}.{% endfor %}", default="Fine.")
    chats = [await open_chat(user, agent, input={"who": "me"}) for agent in (prompt, answer, plain)]
    of_prompt, of_answer, of_plain = await asyncio.gather(*(stream(user, chat, "go") for chat in chats))
    assert [event.name for event in of_prompt] == ["error"]
    assert "system prompt cannot be rendered: it takes longer than 5 seconds" in of_prompt[0].data["error"]
    assert [event.name for event in of_answer] == ["error"]
    assert "scripted model's default failed: it takes longer than 5 seconds" in of_answer[0].data["error"]
    assert text_of(of_plain) == "Fine."


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("{{ 10 ** (10 ** 10) }}", 201),
        ("{{ 'x' * 10 ** 10 }}", 201),
        ("{{ 'x' | center(10 ** 10) }}", 201),
        ("{% autoescape 10 ** (10 ** 10) %}{% endautoescape %}", 422),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", 422),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, 422),
        ("{% if a %}" * 150 + "{% endif %}" * 150, 422),
        ("{{ a | nonsense }}", 422),
    ],
)
async def test_a_template_is_not_carried_out_when_it_is_declared(admin: Person, source: str, status: int) -> None:
    made = await admin.http.post("/api/v1/agents", json={"name": "one", "system_prompt": source})
    assert made.status_code == status, made.text
    if status == 422:
        assert made.json()["detail"][0]["loc"] == ["body", "system_prompt"]

"""Templates that agents' authors write: none of them may stop the others' chats."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

import pytest
from pydantic import JsonValue
from structlog.testing import capture_logs

from sinas_server.backends.render import Part, Renderer
from sinas_server.backends.render.process import ProcessRenderer
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Declare, get_chat, open_chat, reread, stream, text_of, working
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


class NotedRenderer:
    """A `Renderer` that notes what it is asked."""

    def __init__(self, renderer: Renderer) -> None:
        self.inner = renderer
        self.asked: list[str] = []

    async def render(self, parts: Sequence[Part], variables: Mapping[str, JsonValue]) -> list[str]:
        self.asked += [part.source for part in parts]
        return await self.inner.render(parts, variables)

    async def close(self) -> None:
        await self.inner.close()


async def test_a_status_template_without_end_is_tried_once_in_a_turn(
    runtime: Runtime, declare: Declare, user: Person
) -> None:
    names = ["shop/first", "shop/second", "shop/danger", "shop/third", "shop/look"]
    calls = [{"tool": name, "arguments": {"n": 1}} for name in names]
    agent = await declare(
        "one",
        rules=[
            {"when": {"contains": "go"}, "call": calls[:2]},
            {"when": {"after_tool": "shop/second"}, "call": [calls[2]]},
            {"when": {"after_tool": "shop/danger"}, "call": calls[3:]},
            {"when": {"after_tool": "shop/third"}, "answer": "Done."},
        ],
        enabled_functions=names,
        status_templates=dict.fromkeys(names[:4], ENDLESS),
    )
    renderer = NotedRenderer(ProcessRenderer(seconds=1))
    chat = await open_chat(user, agent)
    noted = dataclasses.replace(runtime, renderer=renderer)
    with capture_logs() as logs:
        async with working(noted):
            assert "approval_required" in [event.name for event in await stream(user, chat, "go")]
        asked = (await get_chat(user, chat))["pending_approvals"][0]["tool_call_id"]
        async with working(noted, name="another"):  # a process that remembers nothing
            given = await user.http.post(f"/chats/{chat}/approve-tool/{asked}", json={"approved": True})
            assert text_of(await reread(user, chat, given.json()["channel_id"])) == "Done."
            assert text_of(await stream(user, chat, "go")) == ""  # another turn, which waits for the approval
    await renderer.close()
    assert renderer.asked.count(ENDLESS) == 2
    assert len([log for log in logs if log["event"].startswith("status template given up")]) == 2
    messages = (await get_chat(user, chat))["messages"]
    shown = [call["description"] for message in messages for call in message["tool_calls"] or ()]
    plain = [f"Using {name}" for name in names]
    assert shown == [*plain[:4], "Looking at 1", *plain[:3]]

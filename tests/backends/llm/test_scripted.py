"""The scripted model: rules, templates, and the same bytes for the same request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest
from pydantic import JsonValue

from sinas_server.backends.llm import (
    Answer,
    AssistantMessage,
    LanguageModel,
    MediaPart,
    Message,
    ModelRequest,
    ProviderConfig,
    ProviderError,
    TextDelta,
    TextPart,
    ToolCall,
    ToolMessage,
    ToolSpec,
    Usage,
    UserMessage,
)
from sinas_server.backends.llm.open import open_model
from sinas_server.backends.llm.scripted import LABEL, ScriptedRules, sent_name
from sinas_server.backends.render import Renderer
from tests.backends.llm.asking import ask, collect, failure, text

TOOLS = tuple(ToolSpec(name, "", {"type": "object"}) for name in ("shop__find_order", "shop__refund", "clock"))
SHOP: dict[str, JsonValue] = {
    "rules": [
        {
            "when": {"regex": r"refund order (?P<id>\d+)"},
            "answer": "One moment.",
            "call": [
                {
                    "tool": "shop/find_order",
                    "arguments": {"id": "{{ groups.id | int }}", "note": "#{{ groups.id }}"},
                },
                {"tool": "clock", "arguments": {"zones": ["UTC", "{{ message[:6] }}"], "exact": True}},
            ],
        },
        {"when": {"contains": "ORDER"}, "call": [{"tool": "shop__find_order"}]},
        {
            "when": {"after_tool": "shop/find_order", "contains": "refund"},
            "call": [{"tool": "shop/refund", "arguments": {"order": "{{ results['shop/find_order'] }}"}}],
        },
        {"when": {"after_tool": "shop/refund"}, "answer": "Refunded {{ results['shop/find_order'].total }} EUR."},
        {
            "when": {"after_tool": "shop/find_order"},
            "answer": "It is {{ results.shop__find_order.status }}, open {{ results.clock | default('always') }}.",
        },
        {"when": {"contains": "sum"}, "answer": "{{ input.a + input.b }}"},
    ],
    "default": "I know about orders, not about {{ message }}.",
    "chunk_size": 5,
}


Open = Callable[[Mapping[str, JsonValue]], LanguageModel]
Say = Callable[..., Awaitable[Answer]]


@pytest.fixture
def model(renderer: Renderer) -> Open:
    """`model(options)` opens a model."""
    return lambda options: open_model(ProviderConfig("scripted", options=options), renderer)


def turn(*messages: Message | str) -> ModelRequest:
    return ask(*messages, tools=TOOLS)


@pytest.fixture
def answer(model: Open) -> Say:
    """`await answer(*messages)` is what the shop's model says to them."""

    async def say(*messages: Message | str) -> Answer:
        return (await collect(model(SHOP), turn(*messages)))[1]

    return say


def called(found: Answer) -> AssistantMessage:
    return AssistantMessage(found.text, found.tool_calls, found.native)


async def test_a_whole_turn_of_three_steps(answer: Say) -> None:
    first = await answer("Please refund order 17!")
    assert first.text == "One moment."
    assert [(call.name, call.arguments) for call in first.tool_calls] == [
        ("shop__find_order", '{"id": 17, "note": "#17"}'),
        ("clock", '{"zones": ["UTC", "Please"], "exact": true}'),
    ]
    assert first.finish_reason == "tool_calls"
    said: list[Message | str] = [
        "Please refund order 17!",
        called(first),
        ToolMessage(first.tool_calls[0].id, "shop__find_order", '{"status": "sent", "total": 9.5}'),
        ToolMessage(first.tool_calls[1].id, "clock", "noon"),
    ]
    second = await answer(*said)
    assert second.tool_calls[0].name == "shop__refund"
    assert second.tool_calls[0].arguments == '{"order": {"status": "sent", "total": 9.5}}'
    said += [called(second), ToolMessage(second.tool_calls[0].id, "shop__refund", '"done"')]
    third = await answer(*said)
    assert (third.text, third.tool_calls, third.finish_reason) == ("Refunded 9.5 EUR.", (), "stop")
    ids = [call.id for found in (first, second) for call in found.tool_calls]
    assert len(set(ids)) == 3
    # the next message of the chat is a new turn: earlier results neither match nor can be used
    fourth = await answer(*said, called(third), "And the weather?")
    assert fourth.text == "I know about orders, not about And the weather?."


async def test_results_that_are_not_json_are_text(answer: Say) -> None:
    found = await answer(
        "my order?",
        AssistantMessage("", (ToolCall("a", "shop__find_order", "{}"), ToolCall("b", "clock", "{}"))),
        ToolMessage("a", "shop__find_order", '{"status": "late"}'),
        ToolMessage("b", "clock", "at noon"),
    )
    assert found.text == "It is late, open at noon."


async def test_input_is_the_message_parsed(answer: Say) -> None:
    assert (await answer('{"sum": 1, "a": 2, "b": 40}')).text == "42"


async def test_the_message_is_its_text_parts(answer: Say) -> None:
    user = UserMessage((TextPart("my order"), MediaPart("image", "image/png", url="https://example.com/x.png")))
    assert (await answer(user)).tool_calls[0].name == "shop__find_order"


async def test_streams_pieces_of_the_same_bytes_every_time(model: Open) -> None:
    events, first = await collect(model(SHOP), turn("Grüße"))
    assert all(isinstance(event, TextDelta) and 0 < len(event.text) <= 5 for event in events)
    assert text(events) == first.text
    assert (await collect(model(SHOP), turn("Grüße"))) == (events, first)


async def test_says_what_it_is_and_counts_nothing(model: Open) -> None:
    events, found = await collect(model({}), turn("Hello"))
    assert LABEL == "scripted offline model (for demos and tests)"
    assert LABEL in found.text == text(events)
    assert found.usage == Usage()
    assert await model(SHOP).list_models() == ["scripted"]
    await model(SHOP).close()


async def test_a_delay_changes_nothing_but_time(model: Open) -> None:
    slow = model({**SHOP, "delay_ms": 1})
    assert await collect(slow, turn("Hi")) == await collect(model(SHOP), turn("Hi"))


async def test_a_tool_that_is_not_offered_is_named(model: Open) -> None:
    error = await failure(model(SHOP), ask("my order"))
    assert not error.retryable
    assert str(error) == (
        "the scripted model's rules.1 failed: it calls shop__find_order, which is not among the tools offered (none)"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ results.nothing }}", "'dict object' has no attribute 'nothing'"),
        ("{{ groups.id }}", "'dict object' has no attribute 'id'"),
        ("{{ who }}", "'who' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ message.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "Range too big"),
    ],
)
async def test_a_template_that_fails_names_its_rule(template: str, reason: str, model: Open) -> None:
    error = await failure(model({"rules": [{"answer": template}]}), turn("Hi"))
    assert str(error).startswith("the scripted model's rules.0 failed: ")
    assert reason in str(error)
    arguments: dict[str, JsonValue] = {"rules": [{"call": [{"tool": "clock", "arguments": {"deep": [template]}}]}]}
    assert reason in str(await failure(model(arguments), turn("Hi")))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rules": [{}]}, "rules.0: a rule needs `call` or `answer`"),
        ({"rules": [{"answer": "{{ x"}]}, "rules.0.answer: not a Jinja2 template"),
        (
            {"rules": [{"call": [{"tool": "t", "arguments": {"a": [{"b": "{% if %}"}]}}]}]},
            "rules.0.call.0.arguments: not",
        ),
        ({"rules": [{"when": {"regex": "("}, "answer": "x"}]}, "rules.0.when.regex: not a regular expression"),
        ({"rules": [{"when": {"contain": "x"}, "answer": "x"}]}, "rules.0.when.contain: Extra inputs"),
        ({"rules": [{"when": {"contains": ""}, "answer": "x"}]}, "rules.0.when.contains: String should have"),
        ({"rules": "x"}, "rules: Input should be a valid list"),
        ({"default": "{{"}, "default: not a Jinja2 template"),
        ({"chunk_size": 0}, "chunk_size: Input should be greater"),
        ({"delay_ms": -1}, "delay_ms: Input should be greater"),
        ({"model": "gpt"}, "model: Extra inputs"),
    ],
)
async def test_bad_rules_are_named(options: dict[str, JsonValue], reason: str, model: Open) -> None:
    with pytest.raises(ProviderError) as caught:
        model(options)
    assert reason in str(caught.value)


def test_the_rules_describe_themselves() -> None:
    schema = ScriptedRules.model_json_schema()
    for definition in (schema, *schema["$defs"].values()):
        for name, field in definition.get("properties", {}).items():
            assert field.get("description"), name


@pytest.mark.parametrize(
    ("tool", "sent"),
    [("shop/find_order", "shop__find_order"), ("shop/My Agent (1)", "shop__My_Agent__1_"), ("clock", "clock")],
)
def test_names_as_they_are_sent(tool: str, sent: str) -> None:
    assert sent_name(tool) == sent


async def test_a_pattern_that_backtracks_for_ever_fails_its_turn_and_stops_nobody(model: Open) -> None:
    endless = model({"rules": [{"when": {"regex": "(x+x+)+y"}, "answer": "Never."}], "default": "Done."})
    failing = asyncio.create_task(failure(endless, turn("x" * 5000)))
    beats = 0
    while not failing.done():
        await asyncio.sleep(0)
        beats += 1
    assert beats > 10  # others ran meanwhile
    assert "rules.0 failed: its regex takes more than 1 s" in str(await failing)
    assert (await collect(endless, turn("x")))[1].text == "Done."

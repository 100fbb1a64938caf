"""What a turn is compared with: every expectation met and not met, in the words that are told."""

from typing import Any

import pytest

from sinas_server.cli.agent_tests.expect import Called, Heard, is_called, unmet
from sinas_server.cli.agent_tests.scenario import Expectations
from sinas_server.kernel.tool import tool_name

LOOK, MAIL = Called("shop__look", {"id": "7", "deep": {"a": 1, "b": [1, 2]}}), Called("shop__mail", {"to": "ada"})


def told(heard: Heard, **expected: object) -> list[str]:
    return list(unmet(Expectations.model_validate(expected), heard))


def calls(*made: Called) -> Heard:
    return Heard(calls=dict(zip("abc", made, strict=False)))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([LOOK, MAIL], {"tool_calls": [{"tool": "shop/mail"}, {"tool": "shop__look"}]}),
        ([LOOK, MAIL], {"tool_calls": [{"tool": "shop/look"}, {"tool": "shop/mail"}], "in_order": True}),
        ([LOOK], {"tool_calls": [{"tool": "shop/look", "arguments": {"deep": {"b": [1, 2]}}}]}),
        ([MAIL], {"tool_calls": [{"tool": "shop/mail", "arguments": {"to": "ada"}, "exact": True}]}),
        ([LOOK, MAIL, LOOK], {"tool_calls": [{"tool": "shop/mail"}], "other_calls": True, "in_order": True}),
        ([], {"tool_calls": []}),
        ([LOOK, MAIL], {"max_tool_calls": 2}),
    ],
)
def test_calls_as_expected(made: list[Called], expected: dict[str, Any]) -> None:
    assert told(calls(*made), **expected) == []


@pytest.mark.parametrize(
    ("made", "expected", "problems"),
    [
        ([], {"tool_calls": [{"tool": "shop/look"}]}, ["tool call shop/look {}: not made; calls: none"]),
        ([MAIL], {"tool_calls": []}, ['tool call shop__mail {"to": "ada"}: not expected']),
        (
            [MAIL],
            {"tool_calls": [{"tool": "shop/mail", "arguments": {"to": "eve", "cc": "x"}}]},
            [
                'tool call shop/mail: arguments.to: "eve" → "ada"',
                'tool call shop/mail: arguments.cc: is not there, expected "x"',
            ],
        ),
        (
            [LOOK],
            {"tool_calls": [{"tool": "shop/look", "arguments": {"id": "7"}, "exact": True}]},
            ['tool call shop/look: arguments.deep: is new, {"a": 1, "b": [1, 2]}'],
        ),
        (
            [MAIL, LOOK],
            {"tool_calls": [{"tool": "shop/look"}, {"tool": "shop/mail"}], "in_order": True},
            [
                'tool call shop__mail {"to": "ada"}: not expected before shop/look',
                "tool call shop/mail: not in the order expected",
            ],
        ),
        ([LOOK, LOOK], {"max_tool_calls": 1}, ["tool calls: at most 1 expected, there are 2"]),
    ],
)
def test_calls_otherwise(made: list[Called], expected: dict[str, Any], problems: list[str]) -> None:
    assert told(calls(*made), **expected) == problems


@pytest.mark.parametrize(
    ("text", "answer", "problems"),
    [
        (" Hi. ", {"exact": "Hi."}, []),
        ("Hi.", {"exact": "Ho."}, ['answer: "Ho." → "Hi."']),
        ("Order 7 is late", "is late", []),
        ("Order 7", {"contains": ["7", "late"]}, ['answer: "late" is not in "Order 7"']),
        ("Sorry", {"excludes": "Sorry"}, ['answer: "Sorry" is in "Sorry"']),
        ("Order 7", {"regex": r"Order \d$"}, []),
        ("Order x", {"regex": r"\d"}, [r'answer: \d is not found in "Order x"']),
        ('{"total": 3}', {"json_schema": {"required": ["total"]}}, []),
        ("Hi", {"json_schema": {"type": "object"}}, ['answer: is not JSON: "Hi"']),
        ("[]", {"json_schema": {"type": "object"}}, ['answer: [] is not of type "object"']),
    ],
)
def test_answers(text: str, answer: object, problems: list[str]) -> None:
    assert told(Heard(text=text), answer=answer) == problems


def test_how_a_turn_ends() -> None:
    broken = Heard("failed", error="no provider")
    assert told(broken) == ["status: expected completed, it is failed: no provider"]
    assert told(broken, status="failed", error="provider") == []
    assert told(broken, status="failed", error="key") == ['error: expected "key" in "no provider"']
    assert told(Heard(tokens=12), max_tokens=11) == ["tokens: at most 11 expected, it took 12"]


def test_tools_by_any_of_their_names() -> None:
    long = "x" * 80
    assert is_called(f"shop/{long}", tool_name("shop", long))
    assert is_called("shop/bot", "call_agent_shop__bot")
    assert is_called("shop/returns", "skill__shop__returns")
    assert is_called("askUser", "askUser")
    assert not is_called("shop/look", "shop__looks")

"""Comparing what an agent did in a turn with what was expected; each difference in words."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from sinas_server.cli.agent_tests.scenario import Expectations, ExpectedAnswer, ExpectedCall
from sinas_server.kernel.tool import tool_name
from sinas_server.kit.difference import brief, differences
from sinas_server.kit.schema import violations

Ended = Literal["completed", "failed", "waiting"]


@dataclass(frozen=True)
class Called:
    """A call of a tool that an agent made."""

    name: str
    arguments: JsonValue

    def __str__(self) -> str:
        return f"{self.name} {brief(self.arguments)}"


@dataclass
class Heard:
    """What an agent did in a turn."""

    status: Ended = "completed"
    text: str = ""
    calls: dict[str, Called] = field(default_factory=dict)
    """By their ids."""
    tokens: int = 0
    error: str = ""


def sent_name(tool: str) -> str:
    """A tool's `namespace/name` as the model knows a function of that name."""
    return tool_name(*tool.split("/", 1))


def is_called(tool: str, name: str) -> bool:
    """Whether `tool`, as `namespace/name` or as the model sees it, is what the model knows as `name`."""
    namespace, slash, rest = tool.partition("/")
    prefixes = (namespace, f"call_agent_{namespace}")
    return name == tool or (
        bool(slash) and name in {tool_name("skill", namespace, rest), *(tool_name(part, rest) for part in prefixes)}
    )


def unmet(expected: Expectations, heard: Heard) -> Iterator[str]:
    """What of the expectations is not met, but for the judge's."""
    if heard.status != expected.status:
        why = f": {heard.error}" if heard.error else ""
        yield f"status: expected {expected.status}, it is {heard.status}{why}"
    if expected.error is not None and expected.error not in heard.error:
        yield f"error: expected {brief(expected.error)} in {brief(heard.error)}"
    if expected.tool_calls is not None:
        yield from _unlike_calls(expected, expected.tool_calls, list(heard.calls.values()))
    if expected.max_tool_calls is not None and len(heard.calls) > expected.max_tool_calls:
        yield f"tool calls: at most {expected.max_tool_calls} expected, there are {len(heard.calls)}"
    if expected.max_tokens is not None and heard.tokens > expected.max_tokens:
        yield f"tokens: at most {expected.max_tokens} expected, it took {heard.tokens}"
    if expected.answer is not None:
        yield from _unlike_answer(expected.answer, heard.text)


def _unlike_calls(expected: Expectations, wanted: Sequence[ExpectedCall], calls: Sequence[Called]) -> Iterator[str]:
    left = list(calls)
    for want in wanted:
        fitting = next((index for index, call in enumerate(left) if not _unlike(want, call)), None)
        if fitting is not None:
            # What comes before it has been passed over, where the order counts.
            skipped = left[:fitting] if expected.in_order else ()
            if skipped and not expected.other_calls:
                yield f"tool call {skipped[0]}: not expected before {want.tool}"
            left = left[fitting + 1 :] if expected.in_order else [*left[:fitting], *left[fitting + 1 :]]
            continue
        yield from _missing(want, left, calls)
    if not expected.other_calls:
        yield from (f"tool call {call}: not expected" for call in left if not _was_near(wanted, call, calls))


def _was_near(wanted: Sequence[ExpectedCall], call: Called, calls: Sequence[Called]) -> bool:
    """Whether the call was told already as one with other arguments than expected."""
    return any(
        is_called(want.tool, call.name) and all(_unlike(want, other) for other in calls if other.name == call.name)
        for want in wanted
    )


def _missing(want: ExpectedCall, left: Sequence[Called], calls: Sequence[Called]) -> Iterator[str]:
    near = [_unlike(want, call) for call in left if is_called(want.tool, call.name)]
    if near:
        yield from (f"tool call {want.tool}: {line}" for line in min(near, key=len))
    elif any(not _unlike(want, call) for call in calls):
        yield f"tool call {want.tool}: not in the order expected"
    else:
        made = ", ".join(call.name for call in calls) or "none"
        yield f"tool call {want.tool} {brief(want.arguments)}: not made; calls: {made}"


def _unlike(want: ExpectedCall, call: Called) -> list[str]:
    if not is_called(want.tool, call.name):
        return [f"it is {call.name}"]
    return list(differences(want.arguments, call.arguments, partial=not want.exact, path="arguments"))


def _unlike_answer(expected: ExpectedAnswer, text: str) -> Iterator[str]:
    if expected.exact is not None and text.strip() != expected.exact.strip():
        yield from differences(expected.exact.strip(), text.strip(), path="answer")
    for part in expected.contains:
        if part not in text:
            yield f"answer: {brief(part)} is not in {brief(text)}"
    for part in expected.excludes:
        if part in text:
            yield f"answer: {brief(part)} is in {brief(text)}"
    if expected.regex is not None and re.search(expected.regex, text) is None:
        yield f"answer: {expected.regex} is not found in {brief(text)}"
    if expected.json_schema is not None:
        try:
            value: JsonValue = json.loads(text)
        except ValueError:
            yield f"answer: is not JSON: {brief(text)}"
        else:
            yield from (f"answer: {violation}" for violation in violations(expected.json_schema, value))

"""Where two JSON values differ, in words: for what a test expected and what it found."""

import json
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

MOST_CHARACTERS = 80


def brief(value: JsonValue) -> str:
    """A value as JSON on one line, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def differences(expected: JsonValue, found: JsonValue, *, partial: bool = False, path: str = "$") -> Iterator[str]:
    """Each place where they differ, and how. `partial`: keys of objects that are not expected may be there too."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        yield from _in_objects(expected, found, partial, path)
    elif isinstance(expected, list) and isinstance(found, list):
        yield from _in_lists(expected, found, partial, path)
    elif isinstance(expected, str) and isinstance(found, str):
        if expected != found:
            yield f"{path}: {_texts(expected, found)}"
    elif isinstance(expected, bool) is not isinstance(found, bool) or expected != found:
        yield f"{path}: {brief(expected)} → {brief(found)}"


def _in_objects(
    expected: Mapping[str, JsonValue], found: Mapping[str, JsonValue], partial: bool, path: str
) -> Iterator[str]:
    for key, value in expected.items():
        if key in found:
            yield from differences(value, found[key], partial=partial, path=f"{path}.{key}")
        else:
            yield f"{path}.{key}: is not there, expected {brief(value)}"
    if not partial:
        yield from (f"{path}.{key}: is new, {brief(found[key])}" for key in found if key not in expected)


def _in_lists(expected: Sequence[JsonValue], found: Sequence[JsonValue], partial: bool, path: str) -> Iterator[str]:
    for index, (mine, theirs) in enumerate(zip(expected, found, strict=False)):
        yield from differences(mine, theirs, partial=partial, path=f"{path}[{index}]")
    for index, value in enumerate(expected[len(found) :], len(found)):
        yield f"{path}[{index}]: is not there, expected {brief(value)}"
    for index, value in enumerate(found[len(expected) :], len(expected)):
        yield f"{path}[{index}]: is new, {brief(value)}"


def _texts(expected: str, found: str) -> str:
    """Two texts from just before the first character in which they differ."""
    same = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    start = max(0, (min(len(expected), len(found)) if same is None else same) - 20)
    mark = "…" if start else ""
    return f"{brief(mark + expected[start:])} → {brief(mark + found[start:])}"

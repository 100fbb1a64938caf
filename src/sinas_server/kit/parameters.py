"""What is fixed about the arguments of a tool: defaults, and locked values that the model never sees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import orjson
from pydantic import JsonValue


@dataclass(frozen=True)
class Fixed:
    """The values given to a tool's parameters."""

    defaults: dict[str, JsonValue] = field(default_factory=dict)
    locked: dict[str, JsonValue] = field(default_factory=dict)


def sources(declared: Mapping[str, JsonValue]) -> list[str]:
    """The templates among the declared values: every text."""
    found: list[JsonValue] = [_parted(given)[0] for given in declared.values()]
    for value in found:
        if isinstance(value, list | dict):
            found.extend(value if isinstance(value, list) else value.values())
    return list(dict.fromkeys(value for value in found if isinstance(value, str)))


def fixed(declared: Mapping[str, JsonValue], schema: Mapping[str, JsonValue], texts: Mapping[str, str]) -> Fixed:
    """The declared values: each a default, or `{value, locked}`. `texts`: what each of their `sources` gives."""
    found = Fixed()
    for name, given in declared.items():
        value, is_locked = _parted(given)
        filled = _filled(value, texts)
        if filled != value and isinstance(filled, str):
            filled = _typed(filled, _property(schema, name))
        (found.locked if is_locked else found.defaults)[name] = filled
    return found


def _parted(given: JsonValue) -> tuple[JsonValue, bool]:
    """The value, and whether it is locked."""
    if isinstance(given, dict) and "value" in given and given.keys() <= {"value", "locked"}:
        return given["value"], given.get("locked") is True
    return given, False


def _filled(value: JsonValue, texts: Mapping[str, str]) -> JsonValue:
    if isinstance(value, str):
        return texts[value]
    if isinstance(value, list):
        return [_filled(item, texts) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, texts) for key, item in value.items()}
    return value


def _property(schema: Mapping[str, JsonValue], name: str) -> JsonValue:
    properties = schema.get("properties")
    return properties.get(name) if isinstance(properties, dict) else None


def _typed(text: str, declared: JsonValue) -> JsonValue:
    """What a template gave, as the number, boolean or structure that the schema asks for."""
    kind = declared.get("type") if isinstance(declared, dict) else None
    if not isinstance(kind, str) or kind == "string":
        return text
    try:
        return cast(JsonValue, orjson.loads(text))
    except orjson.JSONDecodeError:
        return text


def shown_schema(schema: Mapping[str, JsonValue], given: Fixed) -> dict[str, JsonValue]:
    """The schema of the arguments that are left to the model."""
    properties = schema.get("properties")
    left: dict[str, JsonValue] = {}
    for name, declared in (properties if isinstance(properties, dict) else {}).items():
        if isinstance(declared, dict) and name in given.defaults:
            left[name] = {**declared, "default": given.defaults[name]}
        elif name not in given.locked:
            left[name] = declared
    required = schema.get("required")
    asked: list[JsonValue] = [
        name
        for name in (required if isinstance(required, list) else [])
        if name not in given.locked and name not in given.defaults
    ]
    rest = {key: value for key, value in schema.items() if key not in ("properties", "required")}
    return {"type": "object", **rest, "properties": left, **({"required": asked} if asked else {})}

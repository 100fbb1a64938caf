"""Strict JSON: what PostgreSQL and every client can hold."""

import re
from typing import cast

import orjson
from pydantic import JsonValue

MAX_DEPTH = 128
"""How deeply values may be nested: writers of JSON stop at some depth, and nobody means more."""


class BadJsonError(ValueError):
    """The text is not JSON that can be stored; the message says why."""


def parse(body: bytes) -> JsonValue:
    """JSON from bytes. Refuses NaN, lone surrogates, NUL characters and absurd nesting with `BadJsonError`."""
    try:
        value = cast(JsonValue, orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise BadJsonError(str(error)) from error
    place = nul_in(value) if b"\\u0000" in body else None
    if place is not None:
        raise BadJsonError(": ".join((*filter(None, [".".join(place)]), "NUL characters (\\u0000) cannot be stored")))
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and is_deeper(value, MAX_DEPTH):
        raise BadJsonError(f"values are nested more than {MAX_DEPTH} deep")
    return value


def is_deeper(value: object, levels: int) -> bool:
    """Whether arrays and objects are nested more than `levels` deep in `value`."""
    layer = [value]
    for _ in range(levels + 1):
        inner = [item for item in layer if isinstance(item, (dict, list))]
        if not inner:
            return False
        layer = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
    return True


def nul_in(value: object) -> tuple[str, ...] | None:
    """Where in `value` a string holds a NUL character, for a key where its object is; None if none does."""
    if isinstance(value, str):
        return () if "\x00" in value else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        if isinstance(key, str) and "\x00" in key:
            return ()
        place = nul_in(item)
        if place is not None:
            return (str(key), *place)
    return None


def has_nul(value: object) -> bool:
    """Whether any string inside `value`, keys included, holds a NUL character."""
    return nul_in(value) is not None


def to_snake(key: str) -> str:
    """`maxFileSizeMb` → `max_file_size_mb`; snake_case stays as it is."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower()


def to_camel(key: str) -> str:
    """`max_file_size_mb` → `maxFileSizeMb`."""
    head, *rest = key.split("_")
    return head + "".join(part.capitalize() for part in rest)

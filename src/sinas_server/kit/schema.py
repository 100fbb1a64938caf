"""Validating JSON against JSON Schema (draft 2020-12), never fetching a remote `$ref`."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import jsonschema_rs
import orjson
from pydantic import JsonValue


@dataclass(frozen=True)
class Violation:
    """One way in which a value breaks its schema; `path` leads to it from the root."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        where = "/".join(str(part) for part in self.path)
        return f"{where}: {self.message}" if where else self.message


class InvalidSchemaError(ValueError):
    """The schema itself is not a valid JSON Schema; the message says where."""


@lru_cache(maxsize=1024)
def _validator(schema: bytes) -> jsonschema_rs.Draft202012Validator:
    try:
        return jsonschema_rs.Draft202012Validator(orjson.loads(schema), offline=True, validate_formats=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        message = str(error).partition("\n")[0]
        raise InvalidSchemaError(message) from error


def _compiled(schema: Mapping[str, JsonValue]) -> jsonschema_rs.Draft202012Validator:
    # Order of properties does not matter to validation, so equal schemas share one compiled validator.
    return _validator(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS))


def check_schema(schema: Mapping[str, JsonValue]) -> None:
    """Accept a JSON Schema or raise `InvalidSchemaError`."""
    _compiled(schema)


def violations(schema: Mapping[str, JsonValue], value: JsonValue, most: int = 10) -> list[Violation]:
    """How `value` breaks `schema`, at most `most` of them; empty when it is valid. Raises `InvalidSchemaError`."""
    if not schema:
        return []
    found: list[Violation] = []
    for error in _compiled(schema).iter_errors(value):
        found.append(Violation(tuple(error.instance_path), error.message))
        if len(found) == most:
            break
    return found

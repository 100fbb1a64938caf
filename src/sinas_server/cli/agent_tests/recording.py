"""Recordings as files beside their scenarios: the same recording gives the same bytes, and a change a small difference.

A conversation repeats itself with each request, so an exchange has only the messages that are new since an earlier one
(`after`), and lists of tools are written once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

VERSION = 1
Exchange = Mapping[str, JsonValue]
"""As the API writes it: `asked` and `said`."""


class RecordingError(Exception):
    """The file is no recording; the message says why."""


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _KeptExchange(_Kept):
    after: int | None = None
    model: str
    settings: dict[str, JsonValue] = {}
    tools: str | None = None
    messages: list[JsonValue]
    said: dict[str, JsonValue]


class _File(_Kept):
    version: int = Field(ge=VERSION, le=VERSION)
    scenario: str
    tools: dict[str, dict[str, JsonValue]] = {}
    exchanges: list[_KeptExchange]


def load(path: Path) -> list[JsonValue]:
    """The exchanges of a file. Raises `RecordingError`."""
    try:
        kept = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "$"
        raise RecordingError(f"{path} is not a recording: {where}: {first['msg']}; record it again") from error
    messages: list[list[JsonValue]] = []
    found: list[JsonValue] = []
    for index, exchange in enumerate(kept.exchanges):
        before, tools = exchange.after, exchange.tools
        if (before is not None and not 0 <= before < index) or (tools is not None and tools not in kept.tools):
            raise RecordingError(f"{path} is not a recording: exchanges.{index} refers to nothing; record it again")
        messages.append([*(() if before is None else messages[before]), *exchange.messages])
        asked: dict[str, JsonValue] = {
            "model": exchange.model,
            "settings": exchange.settings,
            "tools": {} if tools is None else kept.tools[tools],
            "messages": messages[-1],
        }
        found.append({"asked": asked, "said": exchange.said})
    return found


def dumps(scenario: str, exchanges: Sequence[Exchange]) -> str:
    """The file's text for the exchanges of a scenario."""
    tools: dict[str, JsonValue] = {}
    known: list[list[JsonValue]] = []
    kept: list[dict[str, JsonValue]] = []
    for exchange in exchanges:
        asked, said = _object(exchange["asked"]), _object(exchange["said"])
        messages, offered = _list(asked["messages"]), _object(asked["tools"])
        before = _longest(known, messages)
        entry: dict[str, JsonValue] = {"model": asked["model"], "settings": asked["settings"], "said": said}
        entry["messages"] = messages if before is None else messages[len(known[before]) :]
        if before is not None:
            entry["after"] = before
        if offered:
            entry["tools"] = _digest(offered)
            tools[_digest(offered)] = offered
        known.append(messages)
        kept.append(entry)
    whole = {"version": VERSION, "scenario": scenario, "tools": tools, "exchanges": kept}
    return json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _longest(known: Sequence[list[JsonValue]], messages: list[JsonValue]) -> int | None:
    """The earlier exchange whose messages these begin with, the one with the most."""
    fitting = [index for index, earlier in enumerate(known) if messages[: len(earlier)] == earlier]
    return max(fitting, key=lambda index: len(known[index]), default=None)


def _digest(value: JsonValue) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []

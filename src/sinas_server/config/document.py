"""Reading and writing configuration documents: YAML, its frame, and `${VAR}` in its values."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sinas_server.config.files import loader
from sinas_server.config.strict import MAX_DEPTH, check_depth
from sinas_server.kernel.apply import Problem
from sinas_server.kernel.declared import escaped

VARIABLE = re.compile(r"\$?\$\{([A-Z_][A-Z0-9_]*)\}")
API_PREFIX = "SINAS_VAR_"
MAX_NODES = 200_000
FRAME = ("apiVersion", "kind", "metadata", "package", "spec")


class DocumentError(Exception):
    """The document cannot be read; every problem with its place."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True)
class Document:
    """A configuration document with its variables filled in."""

    name: str | None
    spec: Mapping[str, Any]
    warnings: tuple[Problem, ...] = ()
    """What of its frame was ignored."""


Lookup = Callable[[str], str | None]


def api_lookup(environment: Mapping[str, str]) -> Lookup:
    """What a document sent through the API may read: variables that begin with `SINAS_VAR_`."""
    return lambda name: environment.get(name) if name.startswith(API_PREFIX) else None


def parse(text: str, lookup: Lookup, hint: str = "", base: Path | None = None) -> Document:
    """Read a document. Raises `DocumentError`; `hint` is added where a variable is missing.

    `base` is the folder of a document that may name files (see `files`).
    """
    filled = _read(text, lookup, hint, base)
    # Packages name themselves in `package`, and may carry `metadata` beside it.
    named = [part for part in (filled.get("metadata"), filled.get("package")) if isinstance(part, dict)]
    name = next((part["name"] for part in named if isinstance(part.get("name"), str)), None)
    ignored = [Problem(key, "this key is not known and was ignored") for key in filled if key not in FRAME]
    return Document(name, filled.get("spec") or {}, tuple(ignored))


def fill(text: str, lookup: Lookup, base: Path) -> str:
    """The document as YAML with its variables and files filled in, and escaped so that reading it changes nothing more.

    Raises `DocumentError`.
    """
    return _dumped(escaped(_read(text, lookup, "", base)))


def _read(text: str, lookup: Lookup, hint: str, base: Path | None) -> dict[Any, Any]:
    try:
        check_depth(text)
        raw = yaml.load(text, Loader=loader(base))  # noqa: S506 - a SafeLoader with two tags of ours
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError([Problem("$", f"not valid YAML: {' '.join(str(error).split())}")]) from error
    if not isinstance(raw, dict):
        raise DocumentError([Problem("$", "must be a YAML mapping with `apiVersion`, `kind` and `spec`")])
    problems: list[Problem] = []
    filled: dict[Any, Any] = _Filler(lookup, hint, problems).mapping(raw, "", 0)
    problems += _frame_problems(filled)
    if problems:
        raise DocumentError(problems)
    return filled


def _frame_problems(document: dict[Any, Any]) -> list[Problem]:
    problems = []
    if document.get("apiVersion") != "sinas.co/v1":
        problems.append(Problem("apiVersion", "must be sinas.co/v1"))
    if document.get("kind") not in ("SinasConfig", "SinasPackage"):
        problems.append(Problem("kind", "must be SinasConfig or SinasPackage"))
    if not isinstance(document.get("spec") or {}, dict):
        problems.append(Problem("spec", "must be a mapping of sections"))
    return problems


class _Filler:
    """Copies a parsed document with `${VAR}` replaced; bounded, since YAML aliases can make a small text enormous."""

    def __init__(self, lookup: Lookup, hint: str, problems: list[Problem]) -> None:
        self.lookup, self.hint, self.problems = lookup, hint, problems
        self.nodes = 0

    def mapping(self, value: dict[Any, Any], path: str, depth: int) -> dict[Any, Any]:
        return {key: self.fill(item, f"{path}.{key}".lstrip("."), depth + 1) for key, item in value.items()}

    def fill(self, value: object, path: str, depth: int) -> object:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise DocumentError([Problem(path or "$", "the document is too large or too deeply nested")])
        if isinstance(value, dict):
            return self.mapping(value, path, depth)
        if isinstance(value, list):
            return [self.fill(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
        if isinstance(value, str):
            if "\x00" in value or re.search("[\ud800-\udfff]", value):
                self.problems.append(Problem(path, "NUL characters and lone surrogates cannot be stored"))
            return VARIABLE.sub(lambda found: self._value(found, path), value)
        if value is None or isinstance(value, bool) or _is_plain_number(value):
            return value
        what = "this number" if isinstance(value, (int, float)) else f"a YAML {type(value).__name__}"
        self.problems.append(Problem(path, f"{what} cannot be stored"))
        return None

    def _value(self, found: re.Match[str], path: str) -> str:
        if found[0].startswith("$$"):
            return found[0][1:]
        value = self.lookup(found[1])
        if value is None:
            self.problems.append(Problem(path, f"variable ${{{found[1]}}} is not set{self.hint}"))
            return ""
        return value


def _is_plain_number(value: object) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return isinstance(value, float) and math.isfinite(value)


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: long texts as blocks, lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text and not re.search(r"[ \t]\n|\t", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dump(spec: Mapping[str, Any], name: str = "export") -> str:
    """A document as text."""
    frame = {"apiVersion": "sinas.co/v1", "kind": "SinasConfig", "metadata": {"name": name}, "spec": dict(spec)}
    return _dumped(frame)


def _dumped(frame: Mapping[Any, Any]) -> str:
    return yaml.dump(dict(frame), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)

"""Finding and reading scenario files; each mistake with its file, line and reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from sinas_server.cli.agent_tests.scenario import Scenario
from sinas_server.config.strict import StrictLoader, check_depth

PATTERNS = ("*.yaml", "*.yml")
MARKS = {"turns", "agent"}
"""A file of a folder with one of these keys is meant as a scenario."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong in a file, and where."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Found:
    """A scenario and its file."""

    file: Path
    scenario: Scenario

    @property
    def recording(self) -> Path:
        """Where its recording is kept: beside it."""
        return self.file.with_suffix(".recording.json")


@dataclass(frozen=True)
class Everything:
    """What is in a file, or in a folder and those in it, in the order of the files' names."""

    scenarios: list[Found]
    mistakes: list[Mistake]
    skipped: list[Path]
    """YAML files of a folder that are no scenarios."""


def read_all(path: Path) -> Everything:
    """Read a file that must be a scenario, or a folder, which may hold other YAML files."""
    files = [path] if path.is_file() else sorted({file for pattern in PATTERNS for file in path.rglob(pattern)})
    all_of = Everything([], [], [])
    for file in files:
        found = _read(file, sure=file == path)
        if found is None:
            all_of.skipped.append(file)
        elif isinstance(found, list):
            all_of.mistakes.extend(found)
        else:
            all_of.scenarios.append(Found(file, found))
    all_of.mistakes.extend(_doubles(all_of.scenarios))
    return all_of


def _doubles(scenarios: Sequence[Found]) -> Iterator[Mistake]:
    first: dict[str, Path] = {}
    for found in scenarios:
        other = first.setdefault(found.scenario.name, found.file)
        if other != found.file:
            yield Mistake(found.file, 1, f"name: '{found.scenario.name}' is the name of {other} already")


def _read(file: Path, *, sure: bool) -> Scenario | list[Mistake] | None:
    """A scenario, or what is wrong with it; None for another file, unless it is `sure` to be one."""
    try:
        text = file.read_text()
        check_depth(text)
        loader = StrictLoader(text)
        tree = loader.get_single_node()
        if not (sure or _is_meant(tree)):
            return None
        doubled = [Mistake(file, line, reason) for line, reason in _repeated(tree)]
        data: object = None if tree is None else loader.construct_document(tree)
    except (OSError, UnicodeDecodeError) as error:
        return [Mistake(file, 1, f"cannot be read: {error}")]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return [Mistake(file, 1 if mark is None else mark.line + 1, f"not valid YAML: {error.problem}")]
    except (yaml.YAMLError, ValueError) as error:
        return [Mistake(file, 1, f"not valid YAML: {' '.join(str(error).split())}")]
    if not isinstance(data, dict):
        return [Mistake(file, 1, "must be a mapping with `name`, `agent` and `turns`")]
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as error:
        return doubled + _mistakes(file, tree, error)
    return doubled or scenario


def _is_meant(tree: yaml.Node | None) -> bool:
    """Whether a document is meant as a scenario, even if it is not a good one. Its tags need not be known."""
    keys = {key.value for key, _ in tree.value} if isinstance(tree, yaml.MappingNode) else set()
    return not MARKS.isdisjoint(keys)


def _repeated(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    """Keys that are given twice in one mapping: YAML would let the last win."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield key.start_mark.line + 1, f"{key.value}: is given twice"
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _mistakes(file: Path, tree: yaml.Node, error: ValidationError) -> list[Mistake]:
    found = []
    for item in error.errors(include_url=False):
        line, path = _at(tree, item["loc"])
        told = item["msg"].removeprefix("Value error, ").replace("Extra inputs are not permitted", "is not known")
        found.append(Mistake(file, line, f"{path}: {told}"))
    return found


def _at(tree: yaml.Node, location: Sequence[str | int]) -> tuple[int, str]:
    """The line (from 1) that a place names, as far as it exists, and the place in words."""
    node, line, path = tree, tree.start_mark.line, ""
    for step in location:
        if isinstance(node, yaml.MappingNode):
            path = f"{path}.{step}".lstrip(".")
            entry = next(((key, value) for key, value in node.value if key.value == step), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node, path = node.value[step], f"{path}[{step}]"
            line = node.start_mark.line
    return line + 1, path or "$"

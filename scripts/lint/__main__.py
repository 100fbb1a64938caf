"""Run every rule over the files that git knows or would add: `python -m scripts.lint`."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from scripts.lint.commits import commits
from scripts.lint.excepts import broad_excepts
from scripts.lint.exempt import COMMITS, EDGES, SIZES, WIRE, Exempt, apart_from
from scripts.lint.imports import local_imports
from scripts.lint.instances import module_instances
from scripts.lint.machine import machine_paths, registry_hosts
from scripts.lint.names import module_names
from scripts.lint.reasons import reasons
from scripts.lint.settings import unread_settings
from scripts.lint.size import file_length, function_length
from scripts.lint.source import Problem, Source, syntax_errors
from scripts.lint.wire import names_any

Rule = Callable[[Source], Iterable[Problem]]

RULES: tuple[tuple[Rule, tuple[Exempt, ...]], ...] = (
    (broad_excepts, EDGES),
    (commits, COMMITS),
    (file_length, SIZES),
    (function_length, SIZES),
    (local_imports, ()),
    (machine_paths, ()),
    (module_instances, ()),
    (module_names, ()),
    (names_any, WIRE),
    (reasons, ()),
    (registry_hosts, ()),
)


def repository() -> list[Source]:
    """Every text file that is committed or would be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    sources = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            sources.append(Source(PurePosixPath(name), Path(name).read_text()))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # binary, deleted but not yet committed, or a submodule
    return sources


def problems(sources: Sequence[Source]) -> list[Problem]:
    """What breaks a rule, in the order of files and lines."""
    broken = {given.path: problem for given in sources for problem in syntax_errors(given)}
    whole = [given for given in sources if given.path not in broken]
    found = [*broken.values(), *unread_settings(whole)]
    for rule, exempt in RULES:
        found += apart_from(exempt, (problem for given in whole for problem in rule(given)))
    return sorted(found, key=lambda problem: (problem.path, problem.line))


def main() -> int:
    """Print every problem; the exit status is 1 if there is one."""
    found = problems(repository())
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""The files that may break a rule, each with its reason: the only place where a rule has exceptions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from scripts.lint.source import Problem

HERE = PurePosixPath("scripts/lint/exempt.py")


@dataclass(frozen=True)
class Exempt:
    """A file, or a folder with a trailing slash, for which a rule does not hold."""

    path: str
    reason: str

    def covers(self, path: PurePosixPath) -> bool:
        """Whether the file is this one or lies in this folder."""
        return str(path).startswith(self.path) if self.path.endswith("/") else str(path) == self.path


WIRE = (
    Exempt("src/sinas_server/kernel/", "iterates over the fields of every kind, whose types only the kinds know"),
    Exempt("src/sinas_server/backends/db/direct.py", "passes on rows and parameters of any statement"),
    Exempt("src/sinas_server/backends/db/link.py", "passes on rows and parameters of any statement"),
    Exempt("src/sinas_server/config/document.py", "reads YAML of unknown shape"),
    Exempt("src/sinas_server/config/strict.py", "reads YAML of unknown shape"),
)
"""May name `Any`."""

SIZES = (Exempt("migrations/versions/", "written by Alembic, one line per column"),)
"""May be long."""

EDGES = (
    Exempt("src/sinas_server/kernel/job.py", "the job runner"),
    Exempt("src/sinas_server/kernel/loop.py", "the loop runner"),
    Exempt("src/sinas_server/kernel/http.py", "the edge of HTTP"),
    Exempt("src/sinas_server/backends/embedded/role.py", "the last frame of a role's process"),
    Exempt("src/sinas_server/backends/sandbox/guest/", "runs code of users and packages, which raises anything"),
)
"""May catch everything."""

COMMITS = (Exempt("src/sinas_server/kernel/unit.py", "the transaction of a request or journal step"),)
"""May commit."""


def apart_from(exempt: tuple[Exempt, ...], problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems outside the exempt files, and one for each exemption that nothing needs any more."""
    unneeded = dict.fromkeys(exempt)
    for problem in problems:
        covering = [entry for entry in exempt if entry.covers(problem.path)]
        for entry in covering:
            unneeded.pop(entry, None)
        if not covering:
            yield problem
    for entry in unneeded:
        yield Problem(HERE, 1, f"{entry.path} needs no exemption any more ({entry.reason}): remove it")

"""What a rule is given and what it answers."""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Problem:
    """A place that breaks a rule, and what to do about it."""

    path: PurePosixPath
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Source:
    """A text file of the repository; `path` is relative to its root."""

    path: PurePosixPath
    text: str

    @property
    def is_python(self) -> bool:
        """Whether it is a Python file."""
        return self.path.suffix == ".py"

    @property
    def is_test(self) -> bool:
        """Whether it belongs to the tests."""
        return self.path.parts[0] == "tests"

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file. Raises `SyntaxError`."""
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """The lines; line n of a problem is `lines[n - 1]`."""
        return self.text.splitlines()

    def comments(self) -> Iterator[tuple[int, str]]:
        """The line and the text of each comment; a `#` inside a string is none."""
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string

    def problem(self, line: int, message: str) -> Problem:
        """A problem in this file."""
        return Problem(self.path, line, message)


def source(path: str, text: str) -> Source:
    """A source from plain strings."""
    return Source(PurePosixPath(path), text)


def syntax_errors(given: Source) -> Iterator[Problem]:
    """The error that keeps every other rule from reading the file."""
    try:
        _ = given.tree if given.is_python else None
    except SyntaxError as error:
        yield given.problem(error.lineno or 1, f"not Python: {error.msg}")

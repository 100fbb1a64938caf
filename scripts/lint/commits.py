"""Commits: one request or journal step is one transaction, and what waits for a commit is sent after it."""

import ast
from collections.abc import Iterator

from scripts.lint.source import Problem, Source


def commits(source: Source) -> Iterator[Problem]:
    """Only the files of `exempt.COMMITS` call `.commit()`, or `.begin()`, which commits on leaving its block."""
    if source.path.parts[0] != "src" or not source.is_python:
        return
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("commit", "begin")
        ):
            yield source.problem(node.lineno, f".{node.func.attr}(): use `async with unit():`")

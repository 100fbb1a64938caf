"""Sizes: what does not fit on a screen is not read, so it is split by meaning before it grows."""

import ast
from collections.abc import Iterator

from scripts.lint.source import Problem, Source

FUNCTION_LINES = 60
FILE_LINES = {".py": 400, ".tsx": 250}


def function_length(source: Source) -> Iterator[Problem]:
    """A function has at most 60 lines, decorators not counted."""
    if not source.is_python:
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield source.problem(
                    node.lineno, f"{node.name} has {lines} lines, more than {FUNCTION_LINES}: split it"
                )


def file_length(source: Source) -> Iterator[Problem]:
    """A Python file has at most 400 lines, a TSX file 250."""
    limit = FILE_LINES.get(source.path.suffix)
    if limit and len(source.lines) > limit:
        yield source.problem(1, f"{len(source.lines)} lines, more than {limit}: split it by what its parts own")

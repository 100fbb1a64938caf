"""`Any` switches the type checker off, so it stays where data of unknown shape crosses our edge."""

import ast
from collections.abc import Iterator

from scripts.lint.source import Problem, Source


def names_any(source: Source) -> Iterator[Problem]:
    """`Any` occurs in the kernel and in the modules of `exempt.WIRE` only."""
    if not source.is_python or source.is_test:
        return
    for node in ast.walk(source.tree):
        named = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if named == "Any" and isinstance(node, ast.expr):
            yield source.problem(node.lineno, "`Any`: use object, JsonValue, a TypedDict or a Protocol")

"""Broad excepts: they turn a bug into a wrong answer, so they stand only where a process, job or request ends."""

import ast
from collections.abc import Iterator

from scripts.lint.source import Problem, Source

BROAD = ("Exception", "BaseException")


def _broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in BROAD) for kind in caught)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _suppresses(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
        return False
    name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
    return name == "suppress" and any(isinstance(kind, ast.Name) and kind.id in BROAD for kind in node.args)


def broad_excepts(source: Source) -> Iterator[Problem]:
    """`except Exception` occurs in the files of `exempt.EDGES` only; cleaning up and raising again is no catching."""
    if not source.is_python or source.is_test:
        return
    for node in ast.walk(source.tree):
        if (isinstance(node, ast.ExceptHandler) and _broad(node) and not _raises_again(node)) or _suppresses(node):
            line = getattr(node, "lineno", 1)
            yield source.problem(line, "broad except: name what can happen here; only edges catch everything")

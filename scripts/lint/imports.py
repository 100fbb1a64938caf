"""Local imports: they hide dependencies from the reader and from the contract on layers."""

import ast
import re
from collections.abc import Iterator

from scripts.lint.source import Problem, Source

LAZY = re.compile(r"#\s*lazy: \S+")


def local_imports(source: Source) -> Iterator[Problem]:
    """An import inside a function carries `# lazy: <reason>`; the only good reason is a heavy library seldom used."""
    if not source.is_python or source.is_test:
        return
    seen = set()
    for function in ast.walk(source.tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Import | ast.ImportFrom) or node.lineno in seen:
                continue
            seen.add(node.lineno)
            statement = source.lines[node.lineno - 1 : node.end_lineno]
            if not any(LAZY.search(line) for line in statement):
                yield source.problem(node.lineno, "import inside a function: move it up, or add `# lazy: <reason>`")

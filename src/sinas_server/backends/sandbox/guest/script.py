"""Run code that is no function: a script with variables and files, whose result is what it ends with.

Its input is `{"variables": {name: value}, "files": {relative path: base64}}`.
"""

import ast
import base64
import json
import os
import sys
import types
from pathlib import Path
from typing import TypedDict, cast

MODULE = "__main__"
MAX_REPR = 100_000


class Input(TypedDict, total=False):
    """What a script is given."""

    variables: dict[str, object]
    files: dict[str, str]


def run(code: str, filename: str, given: object, scratch: str) -> object:
    """The value of the last expression, or else of the variable `result`; as text where JSON cannot hold it.

    Files are in the working directory. Raises what the code raises.
    """
    made = cast(Input, given or {})
    os.chdir(scratch)
    for path, content in made.get("files", {}).items():
        _write(Path(path), content)
    module = types.ModuleType(MODULE)
    module.__file__ = filename
    sys.modules[MODULE] = module
    space = module.__dict__
    space.update(made.get("variables", {}))
    tree = ast.parse(code, filename)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, filename, "exec", dont_inherit=True), space)  # noqa: S102 - this process is the sandbox
    value: object = None
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), filename, "eval", dont_inherit=True), space)  # noqa: S307 - as above
    return _shown(space.get("result") if value is None else value)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(content))


def _shown(value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return repr(value)[:MAX_REPR]
    return value

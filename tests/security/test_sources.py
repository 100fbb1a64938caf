"""What may not be in the server at all: code that runs what users wrote, and packages that were attacked."""

import ast
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SERVER = REPOSITORY / "src/sinas_server"
BUILTINS = {"exec", "eval", "compile", "__import__"}
MODULES = {"importlib", "runpy", "code", "imp"}
PLAIN = {"importlib.metadata", "importlib.resources", "importlib.util"}
GUEST = SERVER / "backends/sandbox/guest"
"""What runs in sandboxes only."""


def _runs_code(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(name.name.partition(".")[0] in MODULES and name.name not in PLAIN for name in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] in MODULES and node.module not in PLAIN
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS


def test_no_server_process_can_run_code_of_users() -> None:
    """They parse it, and give it to sandboxes as text."""
    files = [path for path in SERVER.rglob("*.py") if GUEST not in path.parents]
    found = {
        f"{path.relative_to(SERVER)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call)) and _runs_code(node)
    }
    assert found == set()
    assert any(_runs_code(node) for path in GUEST.glob("*.py") for node in ast.walk(ast.parse(path.read_text())))


def test_the_locked_packages() -> None:
    """Starlette with its CVE-2026-48710 mended; no LiteLLM, of which poisoned releases were published; all by hash."""
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    versions = {package["name"]: package.get("version", "") for package in lock["package"]}
    assert tuple(map(int, versions["starlette"].split("."))) >= (1, 0, 1)
    assert "litellm" not in versions
    for package in lock["package"]:
        files = [*package.get("wheels", ()), *filter(None, [package.get("sdist")])]
        assert files or set(package["source"]) & {"editable", "virtual"}, package["name"]
        assert all(file["hash"].startswith("sha256:") for file in files), package["name"]

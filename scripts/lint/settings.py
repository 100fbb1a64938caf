"""Settings: one that no code reads is a promise to the operator that nobody keeps."""

import ast
from collections.abc import Iterator, Sequence

from scripts.lint.source import Problem, Source

SETTINGS = "src/sinas_server/settings/"
RECEIVER = "settings"


def _receiver(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _read_outside(sources: Sequence[Source]) -> set[str]:
    return {
        node.attr
        for source in sources
        if source.is_python and source.path.parts[0] == "src" and not str(source.path).startswith(SETTINGS)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and _receiver(node.value).endswith(RECEIVER)
    }


def _read_by(method: ast.FunctionDef) -> set[str]:
    return {
        node.attr
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def unread_settings(sources: Sequence[Source]) -> Iterator[Problem]:
    """Each field of `Settings` is read as `settings.<field>` outside its module, directly or by a property read there.

    The receiver's name must end in `settings`, so that `url.port` does not count as reading `port`.
    """
    modules = [source for source in sources if source.is_python and str(source.path).startswith(SETTINGS)]
    classes = [
        (m, n) for m in modules for n in m.tree.body if isinstance(n, ast.ClassDef) and n.name.endswith("Settings")
    ]
    methods = {n.name: _read_by(n) for _, c in classes for n in c.body if isinstance(n, ast.FunctionDef)}
    used = _read_outside(sources)
    while derived := set().union(*(methods[name] for name in used & methods.keys())) - used:
        used |= derived
    for module, declared in classes:
        for node in declared.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id not in used:
                yield module.problem(
                    node.lineno, f"no code reads `settings.{node.target.id}`: put it into effect or remove it"
                )

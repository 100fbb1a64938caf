"""Module state: an object made at import is shared by every test and every fork, so only constants are made there."""

import ast
from collections.abc import Iterator

from scripts.lint.source import Problem, Source

DECLARATIONS = frozenset(
    {"getLogger", "get_logger", "Typer", "ContextVar", "Table", "MetaData"}
    | {"TypeVar", "ParamSpec", "TypeVarTuple", "NewType", "namedtuple"}
)
"""Calls that declare something; their result holds no state that a caller could change by using it."""

STATEFUL = ("Client", "Engine", "Session", "Pool", "Lock", "Event", "Semaphore", "Queue", "Condition", "Cache")
STATEFUL_CALLS = frozenset(
    {"create_engine", "create_async_engine", "sessionmaker", "async_sessionmaker", "FastAPI", "open", "Thread"}
    | {"Settings", "load_settings", "Redis", "from_url", "connect", "getenv"}
    | {"defaultdict", "OrderedDict", "Counter", "deque", "WeakValueDictionary", "WeakKeyDictionary", "WeakSet"}
)


def _called(value: ast.expr) -> str | None:
    if not isinstance(value, ast.Call):
        return None
    function = value.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _empty(value: ast.expr) -> bool:
    if isinstance(value, ast.Dict):
        return not value.keys
    if isinstance(value, ast.List):
        return not value.elts
    return _called(value) in ("dict", "list", "set") and not (isinstance(value, ast.Call) and value.args)


def _reason(name: str, value: ast.expr) -> str | None:
    call = _called(value)
    if call in DECLARATIONS or (call or "").lower().endswith("router") or name.startswith("__"):
        return None
    if call in STATEFUL_CALLS or (call or "").endswith(STATEFUL):
        return f"`{name}` is an object with state"
    if _empty(value):
        return f"`{name}` is an empty container, which can only be meant to be filled"
    is_display = isinstance(value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp)
    if (call is not None or is_display) and not name.isupper() and not name.lstrip("_")[:1].isupper():
        return f"`{name}` is made at import; a constant is written in upper case"
    return None


def module_instances(source: Source) -> Iterator[Problem]:
    """A module makes no object with state, and whatever it makes is a constant by its name."""
    if not source.is_python or source.is_test:
        return
    for node in source.tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            reason = _reason(target.id, value) if isinstance(target, ast.Name) and value is not None else None
            if reason:
                yield source.problem(node.lineno, f"{reason}: make it where the process starts and pass it on")

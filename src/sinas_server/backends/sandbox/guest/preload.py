"""Importing packages once, for all processes that are forked afterwards."""

import importlib

from . import syscalls as sc

STANDARD = (
    *("asyncio", "base64", "collections", "contextlib", "csv", "dataclasses", "datetime", "decimal", "enum"),
    *("functools", "hashlib", "hmac", "http.client", "io", "itertools", "logging", "math", "pathlib", "random", "re"),
    *("secrets", "ssl", "statistics", "string", "textwrap", "time", "typing", "urllib.request", "uuid", "zoneinfo"),
)
"""What user code imports most."""


class LeavesThreadsError(Exception):
    """Importing a package left threads running, which a fork would lose; the argument is its name."""


def preload(packages: list[str]) -> dict[str, str | None]:
    """Import them: each with None, or why it could not be. Raises `LeavesThreadsError`."""
    loaded: dict[str, str | None] = {}
    for name in STANDARD:
        importlib.import_module(name)
    for name in packages:
        try:
            importlib.import_module(name)
            loaded[name] = None
        except Exception as error:  # noqa: BLE001 - a package's own code: whatever it raises, it is not preloaded
            loaded[name] = f"{type(error).__name__}: {error}"
        if sc.thread_count() > 1:
            raise LeavesThreadsError(name)
    return loaded

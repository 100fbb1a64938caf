"""What is made once for all workers of a run: a fixture of a module or session is made in each of them."""

import fcntl
import os
from collections.abc import Callable

import pytest


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[], str]) -> str:
    """What `make` gives, made by the first who asks for it under this name."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    file = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_text(make())
    return file.read_text()

"""How to open a shared pool."""

import sys
from dataclasses import dataclass
from pathlib import Path

from sinas_server.backends.sandbox.config import GUEST_PLATFORM_PORT


@dataclass(frozen=True)
class SharedConfig:
    """Everything the pool needs to know."""

    python: Path = Path(sys.executable)
    """The interpreter that runs functions, 3.11 or later; of a virtual environment, its base is used."""
    packages: tuple[Path, ...] = ()
    """Directories of installed packages that functions may import."""
    package_hash: str | None = None
    """Of the set among them that was approved, if there is one."""
    count: int = 4
    """How many workers are wanted once the first task has come."""
    memory_bytes: int = 1 << 30
    """A worker that occupies more is replaced once its tasks have ended."""
    drain_seconds: float = 600.0
    """How long the tasks of a worker that is being replaced may go on, those that wait for a person too."""
    stop_seconds: float = 5.0
    """How long a task that was told to stop may take before its worker is replaced."""
    platform: tuple[str, int] = ("127.0.0.1", GUEST_PLATFORM_PORT)
    """Where the API really is, as this process reaches it."""

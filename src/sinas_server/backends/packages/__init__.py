"""Python packages for functions: resolving what was approved to a lock, and installing a lock into a directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class PackageError(Exception):
    """It cannot be done; the message is the package tool's reason, without credentials."""


class UnsatisfiableError(PackageError):
    """No versions fit together, or there is no such package: trying again changes nothing."""


class PackageTool(Protocol):
    """Resolves and installs, without running code of the packages."""

    async def resolve(self, requirements: Sequence[str], preferred: str) -> str:
        """A lock: one `name==version` with its hashes for each package, also those needed by others.

        Versions of `preferred`, an earlier lock, are kept where they still fit. Raises `PackageError`.
        """
        ...

    async def install(self, lock: str, target: Path) -> None:
        """Fill an empty directory with exactly what a lock names. Raises `PackageError`."""
        ...

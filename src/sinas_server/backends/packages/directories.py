"""Installed sets of packages on this machine: immutable directories, made in one step, removed when unused."""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from packaging.utils import canonicalize_name

from sinas_server.backends.packages import PackageTool
from sinas_server.backends.sandbox import PackageSet

UNFINISHED = ".new-"
REMOVED = ".old-"
INSTALLING = ".installing"


def set_hash(lock: str) -> str:
    """What identifies the files that a lock installs on this platform (hex)."""
    machine = f"{sys.implementation.cache_tag} {sysconfig.get_platform()}"
    return hashlib.sha256(f"{machine}\n{lock}".encode()).hexdigest()[:32]


class PackageDirectories:
    """The sets below one directory, which several processes may share.

    Whoever uses a set holds a shared lock on its directory, which ends with the process; what nobody holds may go.
    """

    def __init__(self, root: Path, tool: PackageTool) -> None:
        self._root = root
        self._tool = tool
        self._held: dict[str, int] = {}

    async def get(self, lock: str, preload: Collection[str]) -> PackageSet:
        """The set of a lock, installed if it is not here yet, and held until `release`. Raises `PackageError`.

        `preload` are the canonical names of the packages whose modules are worth importing early.
        """
        name = set_hash(lock)
        path = self._root / name
        if name not in self._held:
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
            async with self._one_at_a_time():
                if not self._hold(name):
                    await self._install(lock, path)
                    self._hold(name)
        return PackageSet(name, path, await asyncio.to_thread(_modules, path, preload))

    def _hold(self, name: str) -> bool:
        """Keep a set from being removed; False if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            held = os.open(self._root / name, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_SH)
            self._held[name] = held
            return True
        return False

    async def _install(self, lock: str, path: Path) -> None:
        new = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self._root))
        try:
            await self._tool.install(lock, new)
            await asyncio.to_thread(_publish, new, path)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
            raise

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """Among all processes: what installs, and what removes."""
        fd = os.open(self._root / INSTALLING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:  # not blocking a thread, so that it can be canceled
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.1)
            yield
        finally:
            os.close(fd)

    async def release(self, in_use: Collection[str]) -> None:
        """Let go of all sets but these, and remove from the disk what no process holds and no install is making."""
        for name in self._held.keys() - set(in_use):
            os.close(self._held.pop(name))
        if not self._root.is_dir():
            return
        async with self._one_at_a_time():
            unused = [gone for path in self._root.iterdir() if path.is_dir() and (gone := _set_aside(path))]
        for path in unused:
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def close(self) -> None:
        """Let go of everything; nothing is removed, since the next start will want it."""
        for held in self._held.values():
            os.close(held)
        self._held.clear()


def _publish(new: Path, path: Path) -> None:
    new.chmod(0o755)  # functions read it as another user
    new.rename(path)


def _set_aside(path: Path) -> Path | None:
    """What to remove if a directory is nobody's, under a name that nobody looks for; called by who may install."""
    if path.name.startswith((UNFINISHED, REMOVED)):  # left by a process that was killed
        return path
    if not re.fullmatch("[0-9a-f]{32}", path.name):
        return None
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.rename(path.with_name(f"{REMOVED}{path.name}"))
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def _modules(path: Path, packages: Collection[str]) -> tuple[str, ...]:
    """The public top-level modules that these packages installed."""
    found: set[str] = set()
    for distribution in importlib.metadata.distributions(path=[str(path)]):
        if canonicalize_name(distribution.name) in packages:
            found |= {name for file in distribution.files or () if (name := _module(file.parts))}
    return tuple(sorted(found))


def _module(parts: Sequence[str]) -> str | None:
    first, *rest = parts
    name = first.removesuffix(".py") if not rest else first
    is_module = rest == ["__init__.py"] or (not rest and first.endswith(".py"))
    return name if is_module and name.isidentifier() and not name.startswith("_") else None

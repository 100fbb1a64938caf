"""After an execution in a container: everything of its user id is killed and removed."""

import contextlib
import itertools
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """With the effective user id of an execution: what it may do, and it can do nothing to us (our real id is 0)."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def kill_all(uid: int) -> None:
    """Kill every process of a user id at once; one that is just forking cannot get away, the kernel sees to that."""
    with acting_as(uid), contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def reap_all() -> None:
    """Wait until every process below this one is gone; orphans hang on it, as it is process 1."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def empty(directory: Path) -> None:
    """Remove all below a directory, however deep, as the user id that owns it. Raises `OSError`.

    Deep trees are flattened: a path to their end could be too long, and recursion too deep.
    """
    mark, names = os.urandom(8).hex(), itertools.count()
    while entries := list(directory.iterdir()):
        for entry in entries:
            if not stat.S_ISDIR(entry.lstat().st_mode):
                entry.unlink()
                continue
            entry.chmod(0o700)
            for below in list(entry.iterdir()):
                if stat.S_ISDIR(below.lstat().st_mode):
                    below.chmod(0o700)  # a directory that cannot be written to cannot be moved
                below.rename(directory / f"{mark}-{next(names)}")
            entry.rmdir()

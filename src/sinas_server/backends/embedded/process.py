"""Processes of the embedded stack: starting a server program, waiting, finding children, dying with the parent."""

import ctypes
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

OnEvent = Callable[[str, str], None]
"""Is told what happened: the source (`postgres`, `api`, `supervisor`) and one sentence."""


class EmbeddedError(Exception):
    """The embedded stack cannot start or go on; the message says why and what to do."""


class InterruptedStartError(EmbeddedError):
    """A signal to stop arrived while something was starting."""


class Unit(Protocol):
    """Something that the supervisor keeps alive."""

    @property
    def name(self) -> str:
        """How events call it: one word."""

    @property
    def pid(self) -> int:
        """Its process, 0 when it never started."""

    def start(self) -> None:
        """Starts it and returns when it is usable; raises `EmbeddedError`."""

    def poll(self) -> int | None:
        """None while it runs, then its exit status (negative: the signal)."""

    def terminate(self) -> None:
        """Asks it to end in order; does nothing when it has ended."""

    def kill(self) -> None:
        """Ends it and what it started, now."""


def log_event(source: str, message: str) -> None:
    """Writes one line about an event to standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {source:<12} {message}\n")
    sys.stderr.flush()


def prctl(option: int, argument: int | bytes) -> None:
    """Linux prctl(2) with one argument; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent, of pid `parent`, ends; ends at once when it already has."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def pause(seconds: float) -> None:
    """Sleeps; raises `InterruptedStartError` when a signal to stop is pending, which the supervisor blocks."""
    time.sleep(seconds)
    if signal.sigpending() & STOP_SIGNALS:
        raise InterruptedStartError("interrupted")


def signalled(pid: int, number: int) -> None:
    """Sends a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def describe_exit(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def parents() -> dict[int, int]:
    """The parent's pid of every visible process, from /proc/PID/stat."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes three times as long, and it is asked at each death
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - as above
                    stat = file.read()
            except OSError:  # it ended meanwhile
                continue
            found[int(name)] = int(stat.rpartition(b")")[2].split(None, 2)[1])  # a name may hold spaces and brackets
    return found


def descendants(pid: int) -> list[int]:
    """The pids of everything below `pid`, parents first."""
    children: dict[int, list[int]] = {}
    for child, parent in parents().items():
        children.setdefault(parent, []).append(child)
    found, waiting = list[int](), [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def occupants(directory: Path) -> list[int]:
    """The pids of processes whose working directory is `directory`: a postmaster and its backends stand in theirs."""
    target, found = str(directory.resolve()), list[int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str((entry / "cwd").readlink()) == target and (entry / "comm").read_text().strip() == "postgres":
                    found.append(int(entry.name))
            except OSError:  # it ended, or belongs to somebody else
                continue
    return found


def needs_user_namespace() -> bool:
    """Whether PostgreSQL would refuse our user: root, or a user without a name (`docker run --user 12345`)."""
    if os.geteuid() == 0:
        return True
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return True
    return False

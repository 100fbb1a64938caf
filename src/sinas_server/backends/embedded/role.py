"""Our own processes under the supervisor: forked from what it imported, one session each, dying with it.

The chain of death: a role dies with the supervisor through PDEATHSIG; what a role starts (the sandbox's zygote) must
set PDEATHSIG itself and so dies with the role. When a role dies alone, the supervisor kills the role's whole process
group, and as subreaper every orphan of it that made a session of its own.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sinas_server.backends.embedded.process import PR_SET_NAME, EmbeddedError, describe_exit, die_with_parent, prctl

RESET_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Role:
    """One sort of process: `run` gets its slot, 0 to `count - 1`, and ends in order at SIGTERM."""

    name: str
    run: Callable[[int], None]
    count: int = 1
    grace_seconds: float = 10.0
    """What it gets to end after SIGTERM."""


class RoleProcess:
    """One slot of a role; a `Unit`. Starts only in a process without threads and event loops.

    `close` lists file descriptors that the role must not keep, such as the data directory's lock.
    """

    def __init__(self, role: Role, slot: int, *, close: Sequence[int] = ()) -> None:
        self.name = role.name if role.count == 1 else f"{role.name}-{slot}"
        self.pid = 0
        self._role = role
        self._slot = slot
        self._close = close
        self._status: int | None = 0

    def start(self) -> None:
        """Forks it; what it does first is up to the role."""
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._live(parent)
        self.pid, self._status = pid, None

    def poll(self) -> int | None:
        """None while it runs, then its exit status; 0 when it never started."""
        if self._status is None:
            self._await(os.WNOHANG)
        return self._status

    def wait(self) -> int:
        """Waits for its end; its exit status."""
        while self._status is None:
            self._await(0)
        return self._status

    def terminate(self) -> None:
        """Asks the role, not what it started, to end; does nothing when it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)  # not reaped yet, so the pid is still its own

    def kill(self) -> None:
        """Ends it and its process group now."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def _await(self, option: int) -> None:
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | option) is None:
            return
        self._kill_group()  # before it is reaped, while no other process can have its number
        self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # killed before it led a group
            return

    def _live(self, parent: int) -> None:
        status = 1
        try:
            self._settle(parent)
            self._role.run(self._slot)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt:
            status = 130
        except Exception:  # noqa: BLE001 - the edge of a process
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # the supervisor's own exit handlers are not ours to run

    def _settle(self, parent: int) -> None:
        os.setsid()
        die_with_parent(parent)
        prctl(PR_SET_NAME, f"sinas-{self.name}".encode())
        for number in RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for descriptor in self._close:
            os.close(descriptor)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)


def run_once(role: Role) -> None:
    """Runs a role of one slot to its end in a process of its own; raises `EmbeddedError` when it fails."""
    process = RoleProcess(role, 0)
    process.start()
    try:
        status = process.wait()
    except BaseException:
        process.kill()
        raise
    if status:
        raise EmbeddedError(f"{role.name} {describe_exit(status)}")

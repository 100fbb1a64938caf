"""Turns itself into a server program that dies with its parent; run by path with `python -I -S`.

Arguments: parent's pid, signal to receive when the parent dies, `userns` or `plain`, program, its arguments. Standard
library only. A launcher in a process of its own (and not a `preexec_fn`) is safe when the parent has threads.
"""

import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG = 1


def inside_uid() -> int:
    """A user that /etc/passwd knows, because initdb asks for the name of its user: `nobody` where it exists."""
    known = [entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0]
    return 65534 if 65534 in known or not known else known[0]


def enter_user_namespace(libc: ctypes.CDLL) -> None:
    """Maps our uid to an ordinary one: PostgreSQL refuses to run as root, and initdb as a user without a name."""
    uid, gid, inside = os.geteuid(), os.getegid(), inside_uid()
    if libc.unshare(CLONE_NEWUSER):
        sys.exit(f"cannot create a user namespace: {os.strerror(ctypes.get_errno())}")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{inside} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{inside} {gid} 1")


def main(arguments: list[str]) -> None:
    """Becomes `arguments[3]`; ends at once when the parent is already gone."""
    parent, death_signal, mode, program = int(arguments[0]), int(arguments[1]), arguments[2], arguments[3]
    os.setsid()  # a Ctrl-C on the terminal goes to the supervisor alone, which stops us in order
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    libc = ctypes.CDLL(None, use_errno=True)
    if mode == "userns":
        enter_user_namespace(libc)
    libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)  # last: a change of credentials clears it
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execv(program, arguments[3:])  # noqa: S606 - no shell wanted; the program comes from our own wheels


if __name__ == "__main__":
    main(sys.argv[1:])

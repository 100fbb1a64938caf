"""The kernel calls the sandbox needs and Python lacks, through ctypes (x86_64 and aarch64)."""

import ctypes
import errno
import os
import signal
import socket
import struct
from pathlib import Path

from .numbers import HERE

LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC_WITH_GIL = ctypes.PyDLL(None, use_errno=True)  # clone must not release the lock that the child would then miss

CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x1000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_SLAVE = 16384, 1 << 19
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 4, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
LAST_CAPABILITY = 63

AT_FDCWD = -100
AT_RECURSIVE, AT_EMPTY_PATH, OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 0x8000, 0x1000, 1, 0x80000
MOVE_MOUNT_F_EMPTY_PATH = 4
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41

Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def _c(value: Argument) -> object:
    """An argument as the 64-bit register the kernel reads; pointers pass as they are."""
    return ctypes.c_long(value) if isinstance(value, int) else value


def call(name: str, *arguments: Argument) -> int:
    """One raw system call by name. Raises `OSError`."""
    result = int(LIBC.syscall(ctypes.c_long(HERE.numbers[name]), *map(_c, arguments)))
    if result < 0:
        raise _error(name)
    return result


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise _error(what)


def unshare(flags: int) -> None:
    """Move this process into new namespaces. Raises `OSError`."""
    _check(LIBC.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2). Raises `OSError` naming the target."""
    result = LIBC.mount(
        source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {kind or source} on {target}")


def unmount(target: str) -> None:
    """Detach a mount tree. Raises `OSError`."""
    _check(LIBC.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def set_hostname(name: str) -> None:
    """Name the UTS namespace. Raises `OSError`."""
    _check(LIBC.sethostname(name.encode(), len(name)), "sethostname")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one value. Raises `OSError`."""
    zero = ctypes.c_ulong(0)
    _check(LIBC.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def die_with_parent(parent: int = 0) -> None:
    """Be killed when the parent dies. Forgotten by the kernel on a change of user id, so set it again after one.

    With the pid of the `parent` given, ends at once when that has died before this was said.
    """
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


def drop_capabilities() -> None:
    """Give up every capability, for this process and all it may start."""
    for capability in range(LAST_CAPABILITY):
        zero = ctypes.c_ulong(0)
        dropped = LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), zero, zero, zero)
        if dropped != 0 and ctypes.get_errno() == errno.EINVAL:
            break
    prctl_ambient = LIBC.prctl(PR_CAP_AMBIENT, *map(ctypes.c_ulong, (PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)))
    _check(prctl_ambient, "prctl ambient")
    call("capset", struct.pack("Ii", 0x20080522, 0), struct.pack("6I", 0, 0, 0, 0, 0, 0))
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def detached_tree(path: str) -> int:
    """A read-only, nosuid, nodev copy of a mount tree that is placed later (Linux 5.12 or later)."""
    fd = call("open_tree", AT_FDCWD, path.encode(), OPEN_TREE_CLONE | AT_RECURSIVE | OPEN_TREE_CLOEXEC)
    attributes = struct.pack("QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    call("mount_setattr", fd, b"", AT_EMPTY_PATH | AT_RECURSIVE, attributes, len(attributes))
    return fd


def detached_device(path: str) -> int:
    """A copy of one device's mount, usable as a device."""
    return call("open_tree", AT_FDCWD, path.encode(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)


def place(fd: int, target: str) -> None:
    """Mount a detached tree on `target` and close it."""
    call("move_mount", fd, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    os.close(fd)


def loopback_up() -> None:
    """Switch on `lo` in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14s", b"lo", IFF_UP_RUNNING, b"")
        _check(LIBC.ioctl(control.fileno(), ctypes.c_ulong(SIOCSIFFLAGS), request), "bring up lo")


def write(path: str, text: str) -> None:
    """Write to a file of the kernel, in one call."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    call("close_range", first, 0xFFFFFFFF, 0)


def thread_count() -> int:
    """How many threads this process has."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def clone(flags: int) -> tuple[int, int]:
    """Fork into new namespaces: (0, -1) in the child; the child's pid and a pidfd in the parent. Raises `OSError`.

    By clone and not clone3, which container engines refuse: a filter cannot see its flags.
    """
    pidfd = ctypes.c_int(-1)
    number = ctypes.c_long(HERE.numbers["clone"])
    how = ctypes.c_ulong(flags | CLONE_PIDFD | signal.SIGCHLD)
    nothing = ctypes.c_long(0)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_LIBC_WITH_GIL.syscall(number, how, nothing, ctypes.byref(pidfd), nothing, nothing))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    failure = _error("clone") if pid < 0 else None
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if failure is not None:
        raise failure
    return pid, pidfd.value

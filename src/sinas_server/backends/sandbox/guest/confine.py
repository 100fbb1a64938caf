"""What a freshly forked execution does to itself before any user code runs: mounts, limits, privileges, filters."""

import contextlib
import os
import random
import resource
import socket
import sys
from dataclasses import dataclass
from typing import TypedDict

from . import landlock, network, rootfs, runner, seccomp
from . import syscalls as sc

SANDBOX_UID = 65534
WRITABLE_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")
MAX_OPEN_FILES = 256
NAMESPACES = sc.CLONE_NEWUSER | sc.CLONE_NEWPID | sc.CLONE_NEWNS | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWNET


class Shape(TypedDict):
    """The limits that are fixed when an execution's process is made."""

    memory_bytes: int
    processes: int
    tmp_bytes: int


@dataclass(frozen=True)
class Level:
    """What this machine gives to confine with."""

    namespaces: bool
    own_processes: bool
    """No other process of the same user is in reach: a PID namespace, or a user id of its own in a container."""
    memory_counted: bool
    processes_counted: bool
    """A container counts them; the kernel's own limit counts all processes of a user id on the whole machine."""
    landlock: int
    readable: tuple[str, ...]
    """The only paths that may be read."""
    filter: bytes


def confine(level: Level, shape: Shape, descriptors: tuple[int, int, int], scratch: str) -> socket.socket | None:
    """Confine this process for good; gives the listening socket of the egress proxy, to be handed to the host.

    `descriptors` are the private socket, stdout and stderr; they become 3, 1 and 2. `scratch` is the directory for
    temporary files. Raises `OSError`.
    """
    listener: socket.socket | None = None
    # kill(0) and setpriority reach the whole process group, also over the borders of PID namespaces.
    os.setsid()
    if level.namespaces:
        sc.write("/proc/self/setgroups", "deny")
        sc.write("/proc/self/uid_map", f"{SANDBOX_UID} {SANDBOX_UID} 1")
        sc.write("/proc/self/gid_map", f"{SANDBOX_UID} {SANDBOX_UID} 1")
        rootfs.private_tmp(shape["tmp_bytes"])
        sc.loopback_up()
        listener = _listen()
    lock(level, shape, descriptors, scratch, listener)
    return listener


def lock(
    level: Level,
    shape: Shape,
    descriptors: tuple[int, int, int],
    scratch: str,
    listener: socket.socket | None = None,
) -> None:
    """Give up everything that cannot be given up from outside: descriptors, limits, privileges, files, system calls.

    Raises `OSError`.
    """
    os.chdir(scratch)
    _place_descriptors(descriptors, listener)
    _limit(shape, level)
    sc.drop_capabilities()
    if level.landlock:
        landlock.restrict(level.landlock, level.readable, (scratch, *WRITABLE_DEVICES))
    if not level.own_processes:
        seccomp.install(seccomp.own_signals(os.getpid()))
    run_as(os.SCHED_OTHER)
    seccomp.install(level.filter)
    mix_randomness()


def run_as(policy: int) -> None:
    """Sandboxes are made in batch mode: refilling the pool must not push aside who is being answered."""
    with contextlib.suppress(OSError):  # no kernel refuses it, but some imitations of one do
        os.sched_setscheduler(0, policy, os.sched_param(0))


def _listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", network.PORT), backlog=64)
    listener.setblocking(False)
    return listener


def _place_descriptors(descriptors: tuple[int, int, int], listener: socket.socket | None) -> None:
    """Move the descriptors where they belong and close all others; the listener stays until it is handed over."""
    high = [os.dup(fd) for fd in descriptors]
    spare = os.dup(listener.fileno()) if listener is not None else None
    null = os.open("/dev/null", os.O_RDONLY)
    for fd, target in zip((null, high[1], high[2], high[0]), (0, 1, 2, runner.CHANNEL), strict=True):
        os.dup2(fd, target)
    first = runner.CHANNEL + 1
    if listener is not None and spare is not None:
        listener.detach()
        os.dup2(spare, first, inheritable=False)
        socket.socket.__init__(listener, fileno=first)
        first += 1
    sc.close_from(first)


def _limit(shape: Shape, level: Level) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_FSIZE: shape["tmp_bytes"],
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if not level.processes_counted:
        limits[resource.RLIMIT_NPROC] = shape["processes"]
    if not level.memory_counted:  # holds per process; the host's watchdog adds the tree up
        limits[resource.RLIMIT_DATA] = shape["memory_bytes"]
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))


def mix_randomness() -> None:
    """Forget the random state shared with the zygote, in every generator that is loaded."""
    random.seed()
    ssl = sys.modules.get("ssl")
    if ssl is not None:  # OpenSSL notices a fork by the process id, which is 1 in every sandbox
        ssl.RAND_add(os.urandom(64), 64.0)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()

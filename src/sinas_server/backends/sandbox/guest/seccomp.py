"""The system call filter: what code in a sandbox may not ask of the kernel even where it would be allowed to.

What `allowed` lists passes. Other calls that the table of numbers knows fail with EPERM, and all that it does not know
with ENOSYS, as on an older kernel, so that libraries fall back. Calls by the numbers of another architecture kill.
"""

import ctypes
import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import allowed
from .numbers import HERE, X86_64, Architecture
from .syscalls import PR_SET_PDEATHSIG, call

NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag of clone(2)
CLONE_THREAD = 0x10000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
F_SETOWN, F_SETOWN_EX, F_SETLEASE, F_NOTIFY = 8, 15, 1024, 1026
SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_TYPE_MASK = 1, 2, 5, 0xF
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
IPPROTO_DEFAULT, IPPROTO_TCP, IPPROTO_UDP = 0, 6, 17
X32 = 0x40000000
NO_CALL = 0xFFFFFFFF  # -1, what a tracer puts in the place of a call that it skips

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_ERRNO = 0x00050000
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16
_FARTHEST = 255  # instructions that a condition can skip


@dataclass(frozen=True)
class Filter:
    """What the filter must make up for: namespaces or cgroups that this machine does not give."""

    own_processes: bool
    """The sandbox has its own PID and network namespaces."""
    memory_counted: bool
    """A cgroup counts all memory of the process tree."""
    own_ipc: bool
    """The sandbox has an IPC namespace that ends with it."""


# Programs of classic BPF are pieces of code, each of which ends in a verdict, put together from the end.


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def fail(error: int) -> bytes:
    """End with an error number."""
    return _instruction(_RETURN, _ERRNO | error)


ALLOW = _instruction(_RETURN, 0x7FFF0000)
KILL = _instruction(_RETURN, 0x80000000)
EPERM, ENOSYS, EINVAL = fail(errno.EPERM), fail(errno.ENOSYS), fail(errno.EINVAL)
EAFNOSUPPORT, EPROTONOSUPPORT = fail(errno.EAFNOSUPPORT), fail(errno.EPROTONOSUPPORT)


def by_number(cases: Mapping[int, bytes], otherwise: bytes) -> bytes:
    """What to do by the number of the call."""
    return _instruction(_LOAD, _OFFSET_NUMBER) + _search(_ranges(cases, otherwise))


def _by_argument(index: int, cases: Mapping[int, bytes], otherwise: bytes, mask: int | None = None) -> bytes:
    """What to do by the lower half of an argument, which is all that the kernel reads of these."""
    load = _instruction(_LOAD, _OFFSET_ARGUMENTS + 8 * index)
    if mask is not None:
        load += _instruction(_AND, mask)
    return load + _search(_ranges(cases, otherwise))


def _by_flags(index: int, flags: int, if_any: bytes, if_none: bytes) -> bytes:
    load = _instruction(_LOAD, _OFFSET_ARGUMENTS + 8 * index)
    return load + _branch(_ANY_BIT, flags, if_any, if_none)


def _branch(test: int, value: int, if_true: bytes, if_false: bytes) -> bytes:
    skipped = len(if_false) // 8
    if skipped <= _FARTHEST:
        return _instruction(test, value, skipped, 0) + if_false + if_true
    return _instruction(test, value, 0, 1) + _instruction(_JUMP, skipped) + if_false + if_true


def _ranges(cases: Mapping[int, bytes], otherwise: bytes) -> list[tuple[int, bytes]]:
    """The whole range of numbers as pieces: where each begins, and its code."""
    begins = {0: otherwise}
    for value in sorted(cases):
        begins[value] = cases[value]
        begins.setdefault(value + 1, otherwise)
    pieces: list[tuple[int, bytes]] = []
    for value, code in begins.items():
        if value <= NO_CALL and (not pieces or pieces[-1][1] != code):
            pieces.append((value, code))
    return pieces


def _search(pieces: Sequence[tuple[int, bytes]]) -> bytes:
    """Halve the pieces until one is left: every call passes here, and a list of all would be looked through by each."""
    if len(pieces) == 1:
        return pieces[0][1]
    middle = len(pieces) // 2
    return _branch(_AT_LEAST, pieces[middle][0], _search(pieces[middle:]), _search(pieces[:middle]))


def allowed_names(wanted: Filter) -> frozenset[str]:
    """The calls that pass whatever their arguments are."""
    names = allowed.ALWAYS
    if not wanted.memory_counted:
        names -= allowed.UNMEASURED_MEMORY
    if not (wanted.memory_counted and wanted.own_ipc):
        names -= allowed.LASTING_OBJECTS
    if not wanted.own_processes:
        names -= allowed.OTHER_PROCESSES
    return names


def build(wanted: Filter, architecture: Architecture = HERE) -> bytes:
    """The filter program."""
    verdicts = dict.fromkeys(architecture.numbers, EPERM)
    verdicts |= dict.fromkeys(allowed_names(wanted), ALLOW)
    verdicts |= _by_arguments(own_processes=wanted.own_processes)
    verdicts["clone3"] = ENOSYS  # its flags are behind a pointer, out of sight; libc falls back to clone
    pieces = _ranges(
        {architecture.numbers[name]: code for name, code in verdicts.items() if name in architecture.numbers}, ENOSYS
    )
    if architecture is X86_64:
        pieces += [(X32, KILL), (NO_CALL, ENOSYS)]
    calls = _instruction(_LOAD, _OFFSET_NUMBER) + _search(pieces)
    return _instruction(_LOAD, _OFFSET_ARCH) + _branch(_EQUAL, architecture.audit, calls, KILL)


def _by_arguments(*, own_processes: bool) -> dict[str, bytes]:
    """The calls of which something is allowed; less where other processes are in reach."""
    protocol = _by_argument(2, dict.fromkeys((IPPROTO_DEFAULT, IPPROTO_TCP, IPPROTO_UDP), ALLOW), EPROTONOSUPPORT)
    internet = _by_argument(1, dict.fromkeys((SOCK_STREAM, SOCK_DGRAM), protocol), EPERM, SOCK_TYPE_MASK)
    verdicts = {
        "clone": _by_flags(0, NEW_NAMESPACES, EPERM, ALLOW),
        "socket": _by_argument(0, {AF_UNIX: ALLOW, AF_INET: internet, AF_INET6: internet}, EAFNOSUPPORT),
        "socketpair": _by_argument(0, {AF_UNIX: ALLOW}, EAFNOSUPPORT),
        "prctl": _by_argument(0, dict.fromkeys(allowed.PROCESS_CONTROLS, ALLOW), EINVAL),
        "ioctl": _by_argument(1, dict.fromkeys((TIOCSTI, TIOCLINUX), EPERM), ALLOW),
        "fcntl": ALLOW,
        "prlimit64": ALLOW,
    }
    return verdicts if own_processes else verdicts | _among_others()


def _among_others() -> dict[str, bytes]:
    """The calls of which something else is allowed where there is no PID namespace."""
    # No datagrams: from a pair of those one may send to any socket of the machine by its name.
    connected = _by_argument(1, dict.fromkeys((SOCK_STREAM, SOCK_SEQPACKET), ALLOW), EPERM, SOCK_TYPE_MASK)
    mortal = dict.fromkeys(allowed.PROCESS_CONTROLS, ALLOW) | {PR_SET_PDEATHSIG: EPERM}
    return {
        "clone": _by_flags(0, NEW_NAMESPACES, EPERM, _by_flags(0, CLONE_THREAD, ALLOW, EPERM)),
        "socket": EPERM,
        "socketpair": _by_argument(0, {AF_UNIX: connected}, EAFNOSUPPORT),
        "prctl": _by_argument(0, mortal, EINVAL),  # it dies with the platform
        # A descriptor's owner gets a signal of choice, SIGKILL too, when it becomes ready: another way to kill.
        "ioctl": _by_argument(1, dict.fromkeys((TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP), EPERM), ALLOW),
        "fcntl": _by_argument(1, dict.fromkeys((F_SETOWN, F_SETOWN_EX, F_SETLEASE, F_NOTIFY), EPERM), ALLOW),
        "prlimit64": _by_argument(0, {0: ALLOW}, EPERM),  # of itself only
    }


def own_signals(pid: int) -> bytes:
    """A further filter for where there is no PID namespace: signals only to this process."""
    to_itself = _by_argument(0, {pid: ALLOW}, EPERM)
    return by_number({HERE.numbers["kill"]: to_itself, HERE.numbers["tgkill"]: to_itself}, ALLOW)


def install(code: bytes) -> None:
    """Put the filter on this process and all it starts, for good. Needs no_new_privs. Raises `OSError`."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    call("seccomp", 1, 0, program)

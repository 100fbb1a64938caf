"""The verdict of the system call filter on every call, for both architectures and whatever the machine gives."""

import ctypes
import errno
import itertools
from collections.abc import Iterable

import pytest

from sinas_server.backends.sandbox.guest import allowed, numbers, seccomp
from sinas_server.backends.sandbox.guest.numbers import Architecture
from tests.backends.sandbox import bpf
from tests.security.attacks_on_kernel import REFUSED

ARCHITECTURES = {"x86_64": numbers.X86_64, "aarch64": numbers.AARCH64}
FILTERS = {
    "".join("ny"[each] for each in given): seccomp.Filter(*given)
    for given in itertools.product((False, True), repeat=3)
}
LOOKED_AT = {"clone", "socket", "socketpair", "prctl", "ioctl", "fcntl", "prlimit64"}
I386, ARM = 0x40000003, 0x40000028


def refused(error: int) -> int:
    return bpf.ERRNO | error


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def test_every_call_is_either_allowed_or_refused_for_everybody() -> None:
    passed = allowed.ALWAYS | LOOKED_AT | {"clone3"}
    assert not passed & REFUSED
    assert passed | REFUSED == set(numbers.X86_64.numbers)
    assert set(numbers.AARCH64.numbers) <= set(numbers.X86_64.numbers)
    taken = allowed.UNMEASURED_MEMORY | allowed.LASTING_OBJECTS | allowed.OTHER_PROCESSES
    assert taken <= allowed.ALWAYS


@pytest.mark.parametrize("given", FILTERS)
def test_the_verdict_on_every_number(architecture: Architecture, given: str) -> None:
    wanted = FILTERS[given]
    program = seccomp.build(wanted, architecture)
    names = {number: name for name, number in architecture.numbers.items()}
    away = frozenset[str]()
    if not wanted.memory_counted:
        away |= {"memfd_create"}
    if not (wanted.memory_counted and wanted.own_ipc):
        away |= {"shmget", "msgget", "semget"}
    if not wanted.own_processes:
        away |= allowed.OTHER_PROCESSES
    for number in range(700):
        name = names.get(number)
        if name in LOOKED_AT:
            continue
        said, steps = bpf.verdict(program, architecture.audit, number)
        if name is None or name == "clone3":
            assert said == refused(errno.ENOSYS), number
        elif name in REFUSED or name in away:
            assert said == refused(errno.EPERM), name
        else:
            assert said == bpf.ALLOW, name
        assert steps <= 12, name  # the cost of every call


@pytest.mark.parametrize("given", FILTERS)
def test_other_architectures_are_killed(architecture: Architecture, given: str) -> None:
    program = seccomp.build(FILTERS[given], architecture)
    others = {I386, ARM, numbers.X86_64.audit, numbers.AARCH64.audit} - {architecture.audit}
    assert {bpf.verdict(program, other, number)[0] for other in others for number in range(500)} == {bpf.KILL}
    x32 = {bpf.verdict(program, architecture.audit, 0x40000000 + number)[0] for number in (*range(600), 0x3FFFFFFF)}
    assert x32 == {bpf.KILL if architecture is numbers.X86_64 else refused(errno.ENOSYS)}
    assert bpf.verdict(program, architecture.audit, 0xFFFFFFFF)[0] == refused(errno.ENOSYS)


OWN = seccomp.Filter(own_processes=True, memory_counted=True, own_ipc=True)
SHARED = seccomp.Filter(own_processes=False, memory_counted=True, own_ipc=False)
THREAD, PROCESS, SIGCHLD = 0x3D0F00, 0x1200011, 17  # as libc makes them, and as others do
NEW_NAMESPACES = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
NONBLOCK, CLOEXEC = 0o4000, 0o2000000
Asked = tuple[str | int, ...]

ANYWHERE: list[Asked] = [
    ("clone", THREAD),
    ("socketpair", 1, 1 | CLOEXEC),
    ("socketpair", 1, 5),
    *(("prctl", option) for option in (3, 4, 15, 38, 0x53564D41)),
    *(("ioctl", 0, request) for request in (0x5401, 0x541B)),
    *(("fcntl", 0, command) for command in (0, 1, 2, 3, 4, 6, 1030, 1033)),
    ("prlimit64", 0, 7),
]
NOWHERE: dict[Asked, int] = {
    **{("clone", flag | SIGCHLD): errno.EPERM for flag in NEW_NAMESPACES},
    **{("clone", flag | THREAD): errno.EPERM for flag in NEW_NAMESPACES},
    **{("socketpair", family, 1): errno.EAFNOSUPPORT for family in (0, 2, 10, 30)},
    **{("prctl", option): errno.EINVAL for option in (0, 8, 22, 24, 28, 35, 59, 62, 77, 0xFFFFFFFF)},
    **{("ioctl", 0, request): errno.EPERM for request in (0x5412, 0x541C)},
}
AMONG_OWN: list[Asked] = [
    ("clone", PROCESS),
    ("clone", SIGCHLD),
    *(("socket", 1, kind | NONBLOCK) for kind in (1, 2, 5)),
    *(("socket", family, 1 | CLOEXEC, protocol) for family in (2, 10) for protocol in (0, 6)),
    *(("socket", family, 2 | CLOEXEC, protocol) for family in (2, 10) for protocol in (0, 17)),
    ("socketpair", 1, 2),
    ("prctl", 1),
    *(("ioctl", 0, request) for request in (0x8901, 0x8902)),
    *(("fcntl", 0, command) for command in (8, 15, 1024, 1026)),
    ("prlimit64", 7, 7),
]
RARE_SOCKETS: dict[Asked, int] = {
    **{("socket", family, 3): errno.EAFNOSUPPORT for family in (0, 3, 9, 16, 17, 30, 31, 38, 40, 44, 0x10001)},
    **{("socket", 2, 1, protocol): errno.EPROTONOSUPPORT for protocol in (1, 132, 136, 256, 262)},
    **{("socket", 10, kind): errno.EPERM for kind in (3, 4, 5, 6, 10)},
}


def test_what_is_looked_at_where_processes_are_its_own(architecture: Architecture) -> None:
    expected = {asked: refused(error) for asked, error in (NOWHERE | RARE_SOCKETS).items()}
    expected |= dict.fromkeys(ANYWHERE + AMONG_OWN, bpf.ALLOW)
    assert {asked[0] for asked in expected} == LOOKED_AT
    assert answers(OWN, architecture, expected) == expected


def test_what_is_looked_at_among_processes_of_others(architecture: Architecture) -> None:
    expected = {asked: refused(error) for asked, error in NOWHERE.items()}
    expected |= dict.fromkeys(AMONG_OWN, refused(errno.EPERM))
    expected |= dict.fromkeys(ANYWHERE, bpf.ALLOW)
    assert answers(SHARED, architecture, expected) == expected


def answers(wanted: seccomp.Filter, architecture: Architecture, asked: Iterable[Asked]) -> dict[Asked, int]:
    program = seccomp.build(wanted, architecture)
    found: dict[Asked, int] = {}
    for each in asked:
        name, *arguments = each
        number = architecture.numbers[str(name)]
        found[each] = bpf.verdict(program, architecture.audit, number, *map(int, arguments))[0]
    return found


def test_only_the_lower_half_of_an_argument_counts_as_for_the_kernel() -> None:
    high = 1 << 32
    expected: dict[Asked, int] = {
        ("socket", high | 16, 3): refused(errno.EAFNOSUPPORT),
        ("socket", high | 1, 1): bpf.ALLOW,
    }
    assert answers(OWN, numbers.X86_64, expected) == expected


def test_signals_go_to_the_process_itself_only() -> None:
    program, here = seccomp.own_signals(77), numbers.HERE
    for name in ("kill", "tgkill"):
        targets = {
            pid: bpf.verdict(program, here.audit, here.numbers[name], pid)[0] for pid in (77, 76, 1, 0, 2**32 - 1)
        }
        assert targets == dict.fromkeys(targets, refused(errno.EPERM)) | {77: bpf.ALLOW}
    assert bpf.verdict(program, here.audit, here.numbers["read"], 5)[0] == bpf.ALLOW


def test_code_too_long_for_a_condition_is_jumped_over() -> None:
    program = seccomp.by_number({number: seccomp.fail(number) for number in range(1, 1000)}, seccomp.ALLOW)
    found = [bpf.verdict(program, 0, number)[0] for number in range(1, 1001)]
    assert found == [*map(refused, range(1, 1000)), bpf.ALLOW]


def test_the_numbers_are_those_of_libseccomp(architecture: Architecture) -> None:
    """It knows every architecture, but no call newer than itself."""
    try:
        resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name_arch
    except OSError:
        pytest.skip("libseccomp is not installed")
    resolve.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    told = {name: resolve(architecture.audit, name.encode()) for name in numbers.X86_64.numbers}
    known = {name: number for name, number in told.items() if number >= 0}
    assert len(known) > 250
    assert known == {name: number for name, number in architecture.numbers.items() if name in known}
    newer = {name for name, number in told.items() if number == -1}
    missing = {name for name, number in told.items() if number < -1}
    assert set(architecture.numbers) - set(known) <= newer
    assert not missing & set(architecture.numbers)

"""The system call filter: what code in a sandbox may not ask of the kernel even where it would be allowed to."""

import ctypes
import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .syscalls import NUMBERS, X86, call

DENIED = {  # name: (x86_64, aarch64); -1 where it does not exist. They fail with EPERM.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "personality": (135, 92),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "fanotify_init": (300, 262),
    "nfsservctl": (180, 42),
    "uselib": (134, -1),
    "ustat": (136, -1),
    "sysfs": (139, -1),
    "_sysctl": (156, -1),
    "memfd_secret": (447, -1),
    "landlock_create_ruleset": (444, 444),
    "seccomp": (317, 277),
    "map_shadow_stack": (453, 453),
    "vmsplice": (278, 75),
}
UNMEASURED_MEMORY = {  # memory that belongs to no process: denied where no cgroup counts it
    "memfd_create": (319, 279),
}
LASTING_OBJECTS = {  # System V objects outlive their makers: denied where they are not charged, or stay for the next
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}
SHARED_PROCESSES = {  # ways to reach other processes of the same user: denied where there are no namespaces
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "get_robust_list": (274, 100),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    # Those of System V and POSIX that find by number or name what others have made.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # Changes to files of the same user that Landlock does not see.
    "truncate": (76, 45),
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_add_watch": (254, 27),
}
SIGNALS = {"kill": (62, 129), "tgkill": (234, 131)}  # without a PID namespace: to the process itself only
FIRST_UNKNOWN = 470  # calls newer than this list fail with ENOSYS, as on an older kernel
NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag of clone(2)
CLONE_THREAD = 0x10000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
SIGNAL_OWNER_CONTROLS = (0x8901, 0x8902)  # FIOSETOWN, SIOCSPGRP of ioctl(2)
SIGNAL_OWNER_COMMANDS = (8, 15, 1024, 1026)  # F_SETOWN, F_SETOWN_EX, F_SETLEASE, F_NOTIFY of fcntl(2)
SOCK_STREAM, SOCK_SEQPACKET, SOCK_TYPE_MASK = 1, 5, 0xF
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGUMENTS = 0, 4, 16


@dataclass(frozen=True)
class Filter:
    """What the filter must make up for: namespaces or cgroups that this machine does not give."""

    own_processes: bool
    """The sandbox has its own PID and network namespaces."""
    memory_counted: bool
    """A cgroup counts all memory of the process tree."""
    own_ipc: bool
    """The sandbox has an IPC namespace that ends with it."""


class Program:
    """Classic BPF, one instruction at a time."""

    def __init__(self) -> None:
        self.code = b""
        self.length = 0

    def add(self, code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        """One instruction; the jumps count the instructions to skip."""
        self.code += struct.pack("HBBI", code, if_true, if_false, value)
        self.length += 1

    def fail(self, error: int) -> None:
        """End here with an error number."""
        self.add(_RETURN, _ERRNO | error)

    def deny(self, number: int, error: int = errno.EPERM) -> None:
        """Fail if this is the call; the call's number must be loaded."""
        self.add(_EQUAL, number, 0, 1)
        self.fail(error)

    def argument(self, index: int) -> None:
        """Load the lower half of an argument."""
        self.add(_LOAD, _OFFSET_ARGUMENTS + 8 * index)

    def number(self) -> None:
        """Load the number of the call."""
        self.add(_LOAD, _OFFSET_NUMBER)


def _denied_numbers(wanted: Filter) -> list[int]:
    names = dict(DENIED)
    if not wanted.memory_counted:
        names |= UNMEASURED_MEMORY
    if not (wanted.memory_counted and wanted.own_ipc):
        names |= LASTING_OBJECTS
    if not wanted.own_processes:
        names |= SHARED_PROCESSES
    return [numbers[0 if X86 else 1] for numbers in names.values() if numbers[0 if X86 else 1] >= 0]


def build(wanted: Filter) -> bytes:
    """The filter program for this architecture."""
    program = Program()
    program.add(_LOAD, _OFFSET_ARCH)
    program.add(_EQUAL, 0xC000003E if X86 else 0xC00000B7, 1, 0)
    program.add(_RETURN, _KILL_PROCESS)
    program.number()
    program.add(_AT_LEAST, FIRST_UNKNOWN, 0, 1)  # also the x32 numbers of x86_64
    program.fail(errno.ENOSYS)
    for number in _denied_numbers(wanted):
        program.deny(number)
    # The flags of clone3 are behind a pointer, out of sight; libc falls back to clone.
    program.deny(NUMBERS["clone3"][0 if X86 else 1], errno.ENOSYS)
    _restrict_clone(program, threads_only=not wanted.own_processes)
    _restrict_socket(program)
    controls: tuple[int, ...] = (TIOCSTI, TIOCLINUX)
    if not wanted.own_processes:
        controls += SIGNAL_OWNER_CONTROLS
        _restrict_prlimit(program)
        _restrict_socketpair(program)
        # A descriptor's owner gets a signal of choice, SIGKILL too, when it becomes ready: another way to kill.
        _deny_values(program, 72 if X86 else 25, SIGNAL_OWNER_COMMANDS)
    _deny_values(program, 16 if X86 else 29, controls)
    program.add(_RETURN, _ALLOW)
    return program.code


def _restrict_clone(program: Program, *, threads_only: bool) -> None:
    program.add(_EQUAL, 56 if X86 else 220, 0, 6 if threads_only else 4)
    program.argument(0)
    program.add(_ANY_BIT, NEW_NAMESPACES, 0, 1)
    program.fail(errno.EPERM)
    if threads_only:
        program.add(_ANY_BIT, CLONE_THREAD, 1, 0)
        program.fail(errno.EPERM)
    program.number()


def _restrict_socket(program: Program) -> None:
    program.add(_EQUAL, 41 if X86 else 198, 0, 6)
    program.argument(0)
    program.add(_EQUAL, AF_UNIX, 3, 0)
    program.add(_EQUAL, AF_INET, 2, 0)
    program.add(_EQUAL, AF_INET6, 1, 0)
    program.fail(errno.EAFNOSUPPORT)
    program.number()


def _deny_values(program: Program, number: int, values: Sequence[int]) -> None:
    """Fail if this is the call and its second argument one of the values."""
    program.add(_EQUAL, number, 0, 2 + 2 * len(values))
    program.argument(1)
    for value in values:
        program.deny(value)
    program.number()


def _restrict_socketpair(program: Program) -> None:
    """No datagrams: from a pair of those one may send to any socket of the machine by its name."""
    program.add(_EQUAL, 53 if X86 else 199, 0, 6)
    program.argument(1)
    program.add(_AND, SOCK_TYPE_MASK)
    program.add(_EQUAL, SOCK_STREAM, 2, 0)
    program.add(_EQUAL, SOCK_SEQPACKET, 1, 0)
    program.fail(errno.EPERM)
    program.number()


def _restrict_prlimit(program: Program) -> None:
    """Only for the process itself (pid 0): without a PID namespace the platform's own processes have pids too."""
    program.add(_EQUAL, 302 if X86 else 261, 0, 4)
    program.argument(0)
    program.add(_EQUAL, 0, 1, 0)
    program.fail(errno.EPERM)
    program.number()


def own_signals(pid: int) -> bytes:
    """A further filter: signals only to this process."""
    program = Program()
    program.number()
    for numbers in SIGNALS.values():
        program.add(_EQUAL, numbers[0 if X86 else 1], 0, 4)
        program.argument(0)
        program.add(_EQUAL, pid, 1, 0)
        program.fail(errno.EPERM)
        program.number()
    program.add(_RETURN, _ALLOW)
    return program.code


def install(code: bytes) -> None:
    """Put the filter on this process and all it starts, for good. Needs no_new_privs. Raises `OSError`."""
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    call("seccomp", 1, 0, program)

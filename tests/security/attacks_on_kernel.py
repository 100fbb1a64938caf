"""Attacks on the kernel: system calls that no function needs or nobody knows, and arguments of others."""

import errno
from collections.abc import Callable

from sinas_server.backends.sandbox.guest.numbers import HERE, X86_64
from tests.security.attack import Answer, Attack, failed, first_of, gives, handler, result_list

_REFUSED = """
mount umount2 pivot_root chroot unshare setns open_tree open_tree_attr move_mount mount_setattr
fsopen fsconfig fsmount fspick statmount listmount listns
ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp pidfd_getfd
bpf perf_event_open userfaultfd seccomp personality
landlock_create_ruleset landlock_add_rule landlock_restrict_self lsm_get_self_attr lsm_set_self_attr lsm_list_modules
io_uring_setup io_uring_enter io_uring_register
io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
add_key request_key keyctl
init_module finit_module delete_module create_module query_module get_kernel_syms kexec_load kexec_file_load
reboot swapon swapoff sethostname setdomainname acct quotactl quotactl_fd syslog vhangup
settimeofday clock_settime clock_adjtime adjtimex
iopl ioperm modify_ldt map_shadow_stack set_thread_area get_thread_area
setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
name_to_handle_at open_by_handle_at fanotify_init fanotify_mark file_getattr file_setattr sync syncfs
mbind get_mempolicy set_mempolicy set_mempolicy_home_node migrate_pages move_pages
memfd_secret remap_file_pages vmsplice cachestat
lookup_dcookie nfsservctl uselib ustat sysfs _sysctl epoll_ctl_old epoll_wait_old
getpmsg putpmsg afs_syscall tuxcall security vserver
"""
REFUSED = frozenset(_REFUSED.split())
"""Every system call that fails with EPERM in any sandbox."""
UNKNOWN = sorted(set(range(700)) - set(HERE.numbers.values()))

_CALLS = """import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def ask(number, *arguments):
    ctypes.set_errno(0)
    given = [ctypes.c_long(each) for each in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    return [libc.syscall(ctypes.c_long(number), *given), ctypes.get_errno()]
"""
_CLONE = """import os
r = ask({}, 0x10000000 | 17)
if r[0] == 0: os._exit(0)
return r"""
_THIRTY_TWO_BITS = """import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("53 b8 14 00 00 00 cd 80 5b c3"))  # getpid by int 0x80
return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()"""


def _attack(name: str, body: str, holds: Callable[[Answer], bool]) -> Attack:
    return Attack(name, _CALLS + handler(body), holds, namespaces=False)


def kernel() -> list[Attack]:
    """What is tried; every one is stopped at every level."""
    refused = {name: number for name, number in HERE.numbers.items() if name in REFUSED}
    socket, pair, prctl, clone = (HERE.numbers[name] for name in ("socket", "socketpair", "prctl", "clone"))
    filters = 22
    no, no_such_family, no_protocol = [-1, errno.EPERM], [-1, errno.EAFNOSUPPORT], [-1, errno.EPROTONOSUPPORT]
    found = [
        _attack(
            "system calls that nobody needs",
            f"return {{name: ask(number) for name, number in {refused}.items()}}",
            gives(dict.fromkeys(refused, no)),
        ),
        _attack(
            "system calls that nobody knows",
            f"return [number for number in {UNKNOWN} if ask(number) != [-1, {errno.ENOSYS}]]",
            gives([]),
        ),
        _attack("clone3", f"return ask({HERE.numbers['clone3']})", gives([-1, errno.ENOSYS])),
        _attack("clone into a new user namespace", _CLONE.format(clone), gives(no)),
        _attack("a filter of its own", f"return ask({prctl}, {filters}, 2)", gives([-1, errno.EINVAL])),
        _attack(
            "sockets of rare protocols",
            f"return [ask({socket}, family, kind, protocol) for family in (2, 10)"
            " for kind, protocol in ((1, 132), (1, 256), (1, 262), (2, 1), (2, 136), (5, 132), (6, 33), (3, 1))]",
            lambda answer: len(told := result_list(answer)) == 16 and all(each in (no, no_protocol) for each in told),
        ),
        _attack("a pair of sockets of another family", f"return ask({pair}, 30, 1)", gives(no_such_family)),
        _attack(
            "a device node",
            f"return ask({HERE.numbers['mknodat']}, -100, ctypes.addressof(ctypes.create_string_buffer(b'/tmp/dev')),"
            " 0o20666, 0x103)",
            lambda answer: first_of(answer) == -1 and len(result_list(answer)) == 2,
        ),
    ]
    if HERE is X86_64:
        found += [
            _attack("x32 getpid", "return ask(0x40000000 + 39)", failed("SIGSYS")),
            _attack("getpid of 32 bits", _THIRTY_TWO_BITS, failed("SIGSYS", "SIGSEGV")),
        ]
    return found

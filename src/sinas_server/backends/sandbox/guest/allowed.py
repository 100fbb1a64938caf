"""What code in a sandbox may ask of the kernel: the system calls, and of some of them the arguments.

A call that is in no list here is refused, also if it is added to the table of numbers. The lists were made by what
Python, its libraries and compiled packages use, and held against what container engines allow by default.
"""

from .syscalls import PR_SET_PDEATHSIG

_ALWAYS = """
read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek sendfile splice tee copy_file_range
open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 flock umask
ftruncate truncate fallocate fadvise64 readahead fsync fdatasync sync_file_range

stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getcwd chdir fchdir getdents getdents64
mkdir mkdirat rmdir mknod mknodat link linkat symlink symlinkat readlink readlinkat unlink unlinkat
rename renameat renameat2 chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
utime utimes futimesat utimensat
getxattr lgetxattr fgetxattr getxattrat listxattr llistxattr flistxattr listxattrat
setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat
inotify_init inotify_init1 inotify_add_watch inotify_rm_watch

brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 munlock mlockall munlockall mseal memfd_create
pkey_alloc pkey_free pkey_mprotect membarrier

fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid getpgrp setpgid getsid setsid
getuid geteuid getgid getegid getresuid getresgid getgroups capget
arch_prctl set_tid_address set_robust_list get_robust_list rseq restart_syscall uretprobe uprobe
uname sysinfo getcpu getrusage times getrandom getrlimit setrlimit
getpriority setpriority ioprio_get ioprio_set sched_yield sched_getaffinity sched_setaffinity sched_getparam
sched_setparam sched_getscheduler sched_setscheduler sched_getattr sched_setattr sched_get_priority_max
sched_get_priority_min sched_rr_get_interval

kill tkill tgkill pidfd_open pidfd_send_signal rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait
rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend sigaltstack pause signalfd signalfd4
time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep alarm getitimer setitimer
timer_create timer_settime timer_gettime timer_getoverrun timer_delete
timerfd_create timerfd_settime timerfd_gettime

select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
futex futex_waitv futex_wait futex_wake futex_requeue

bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt shutdown
sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg

shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
"""
ALWAYS = frozenset(_ALWAYS.split())
"""Whatever the arguments are, but for what the sets below take away. Those of which something is allowed: `seccomp`."""

UNMEASURED_MEMORY = frozenset({"memfd_create"})
"""Memory that belongs to no process: refused where no cgroup counts it."""
LASTING_OBJECTS = frozenset({"shmget", "msgget", "semget"})
"""System V objects outlive their makers: refused where they are not charged, or stay for the next."""
_OTHER_PROCESSES = """
fork vfork execve execveat setsid setpgid
tkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open pidfd_send_signal get_robust_list
setpriority ioprio_set sched_setaffinity sched_setparam sched_setscheduler sched_setattr
connect bind
shmget shmat shmctl msgget msgsnd msgrcv msgctl semget semop semtimedop semctl mq_open mq_unlink
truncate chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes futimesat utimensat
setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat inotify_add_watch
"""
OTHER_PROCESSES = frozenset(_OTHER_PROCESSES.split())
"""Ways to other processes of the same user, and to what they have made: refused where there are no namespaces.

Also objects of System V and POSIX, which are found by number or name, and changes of files that Landlock does not see.
"""

PROCESS_CONTROLS = {
    *(PR_SET_PDEATHSIG, 2, 3, 4),  # signal at the parent's death, dumpable
    *(15, 16),  # name
    *(21, 23, 27, 47),  # what is confined how; raising ambient capabilities fails where there are none
    *(29, 30),  # timer slack
    *(36, 37),  # child subreaper
    *(38, 39),  # no_new_privs
    40,  # address of the thread id
    *(41, 42),  # huge pages
    *(50, 51, 63, 64),  # vector lengths of aarch64
    *(52, 53),  # speculation
    *(54, 55, 56, 60, 61),  # pointer authentication and tagged addresses of aarch64
    *(65, 66),  # no memory that is writable and executable
    0x53564D41,  # names of mappings
    0x59616D61,  # who may trace it, of Yama
    0x41555856,  # auxiliary vector
}
"""Options of prctl(2). Others fail as on a kernel that does not know them; that includes filters of one's own."""

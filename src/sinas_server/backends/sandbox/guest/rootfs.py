"""The file system a sandbox sees: a read-only tree of the interpreter, its libraries, the packages and little else."""

import os
from pathlib import Path

from . import syscalls as sc
from .zygote import Tree

DEVICES = ("null", "zero", "full", "random", "urandom")
FROM_HOST = ("/etc/ld.so.cache", "/etc/ssl/certs", "/etc/localtime", "/etc/services", "/etc/protocols")
FILES = {
    "passwd": "root:x:0:0::/:/\nsandbox:x:65534:65534::/tmp:/\n",
    "group": "root:x:0:\nsandbox:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hostname": "sandbox\n",
}
STAGING = "/tmp"  # noqa: S108 - only a mount point, in a mount namespace of our own: it exists everywhere
NO_SUID_DEV = sc.MS_NOSUID | sc.MS_NODEV


def build(tree: Tree) -> None:
    """Replace this mount namespace's root. Needs new user, mount and PID namespaces. Raises `OSError`."""
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_SLAVE)
    # Copies of every source are taken before the staging mount can hide one that lies below it.
    wanted = [*tree["mounts"], *((path, path) for path in FROM_HOST)]
    found = [(os.path.realpath(source), target) for source, target in wanted if Path(source).exists()]
    copies = [(sc.detached_tree(source), target, Path(source).is_dir()) for source, target in found]
    devices = {name: sc.detached_device(f"/dev/{name}") for name in DEVICES if Path(f"/dev/{name}").exists()}
    sc.mount("tmpfs", STAGING, "tmpfs", NO_SUID_DEV, "mode=755,size=1m,nr_inodes=2000")
    root = Path(STAGING)
    for fd, target, is_directory in copies:
        _point(root, target, is_directory=is_directory)
        sc.place(fd, STAGING + target)
    for name, fd in devices.items():
        _point(root, f"/dev/{name}", is_directory=False)
        sc.place(fd, f"{STAGING}/dev/{name}")
    _furnish(root, tree["links"])
    # The kernel lets a user namespace mount /proc only while another /proc is still in sight.
    sc.mount("proc", f"{STAGING}/proc", "proc", NO_SUID_DEV | sc.MS_NOEXEC, "subset=pid")
    os.chdir(STAGING)
    sc.call("pivot_root", b".", b"old")
    os.chdir("/")
    sc.unmount("/old")
    Path("/old").rmdir()
    sc.mount("none", "/", None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | NO_SUID_DEV)


def _point(root: Path, target: str, *, is_directory: bool) -> None:
    """An empty file or directory to mount on."""
    point = root / target.lstrip("/")
    if is_directory:
        point.mkdir(mode=0o755, parents=True, exist_ok=True)
        return
    point.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    point.touch()


def _furnish(root: Path, links: list[tuple[str, str]]) -> None:
    for name in ("dev", "etc", "proc", "tmp", "old"):
        (root / name).mkdir(mode=0o755, exist_ok=True)
    own = [("/dev/fd", "/proc/self/fd"), ("/dev/shm", "/tmp")]  # noqa: S108 - the sandbox's own private directory
    standard = [(f"/dev/{name}", f"/proc/self/fd/{fd}") for fd, name in enumerate(("stdin", "stdout", "stderr"))]
    for link, target in (*links, *own, *standard):
        place = root / link.lstrip("/")
        if not place.is_symlink() and not place.exists():
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            place.symlink_to(target)
    for name, text in FILES.items():
        (root / "etc" / name).write_text(text)


def private_tmp(size: int) -> None:
    """Mount this execution's own /tmp and /proc over the shared tree. Raises `OSError`."""
    flags = NO_SUID_DEV | sc.MS_NOEXEC
    sc.mount("tmpfs", "/tmp", "tmpfs", flags, f"mode=700,size={size},nr_inodes=4096")  # noqa: S108 - inside the sandbox
    sc.mount("proc", "/proc", "proc", flags, "subset=pid")

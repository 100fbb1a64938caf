"""Run a Python file as a user without any rights; a caller that is not root is such a user already.

The interpreter may live where only root can go; in a private mount namespace its path is then opened.
Usage: python ordinary_user.py HOME FILE [ARGUMENT ...]; HOME is a directory made for that user. With the variable
WITHOUT_NAMESPACES the kernel refuses new namespaces, as in a container with the usual system call filter.
"""

import os
import stat
import sys
from pathlib import Path

from sinas_server.backends.sandbox.guest import seccomp
from sinas_server.backends.sandbox.guest import syscalls as sc
from sinas_server.backends.sandbox.guest.numbers import HERE

UID = 54_321


def open_path(path: Path) -> None:
    """Make a directory reachable for everybody, for this process and its children only."""
    closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_SLAVE)
    tree = sc.detached_tree(str(path))
    sc.mount("tmpfs", str(closed[0]), "tmpfs", 0, "mode=755,size=1m")
    path.mkdir(parents=True)
    sc.place(tree, str(path))


def refuse_namespaces() -> None:
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.by_number({HERE.numbers["unshare"]: seccomp.EPERM}, seccomp.ALLOW))


def main(home: str, file: str, *arguments: str) -> None:
    executable = os.path.realpath(sys.executable)
    packages = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
    if os.geteuid() == 0:
        os.chown(home, UID, UID)
        open_path(Path(sys.base_prefix))
    environment = {
        "PYTHONPATH": os.pathsep.join(packages),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
    }
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
    os.chdir(home)
    if os.environ.get("WITHOUT_NAMESPACES"):
        refuse_namespaces()
    os.execve(executable, [executable, file, *arguments], environment)  # noqa: S606 - that is the purpose


if __name__ == "__main__":
    main(*sys.argv[1:])

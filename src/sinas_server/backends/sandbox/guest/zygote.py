"""The zygote's first phase: new namespaces, id maps, and the process that becomes PID 1 of the sandboxes' world.

The host starts it as `python -I -S -B -X utf8 -c "..."` with the descriptor of a SEQPACKET socket and speaks JSON
messages with it (see `serving.py`). It is single-threaded and never holds a secret.
"""

import contextlib
import json
import os
import socket
from typing import NoReturn, TypedDict

from . import syscalls as sc

MAX_MESSAGE = 1 << 17
NAMESPACES = (
    sc.CLONE_NEWUSER
    | sc.CLONE_NEWNS
    | sc.CLONE_NEWPID
    | sc.CLONE_NEWIPC
    | sc.CLONE_NEWUTS
    | sc.CLONE_NEWNET
    | sc.CLONE_NEWCGROUP
)


class Tree(TypedDict):
    """What the sandbox shows of the host: `mounts` are (host path, inside path), `links` are (inside path, target)."""

    mounts: list[tuple[str, str]]
    links: list[tuple[str, str]]


class Config(TypedDict):
    """The first message from the host."""

    namespaces: bool
    memory_counted: bool
    host_uid: int | None
    """The uid that executions have on the host; None when the platform runs as an ordinary user."""
    tree: Tree
    sys_path: list[str]
    preload: list[str]
    scratch: str
    """Where temporary directories are made when there are no namespaces."""


def main(fd: int) -> NoReturn:
    """Become the zygote; ends with the host."""
    os.umask(0o022)
    sc.die_with_parent()
    control = socket.socket(fileno=fd)
    config: Config = json.loads(control.recv(MAX_MESSAGE))
    try:
        if config["namespaces"]:
            _new_namespaces(control, config)
        from . import serving  # lazy: after the waiting parent split off, so that it stays small

        serving.serve(control, config)
    except OSError as error:
        with contextlib.suppress(OSError):  # the host went away
            control.send(json.dumps({"failed": str(error)}).encode())
    os._exit(1)


def _new_namespaces(control: socket.socket, config: Config) -> None:
    """Enter new namespaces; the caller goes on as PID 1 of the new PID namespace."""
    sc.unshare(NAMESPACES)
    control.send(b'{"map": true}')  # only a process outside can write the id maps
    if not control.recv(MAX_MESSAGE):
        os._exit(0)
    if config["host_uid"] is not None:
        os.setgroups([])
    sc.set_hostname("sandbox")
    sc.die_with_parent()
    child = os.fork()
    if child:
        control.close()
        os.waitpid(child, 0)
        os._exit(0)
    sc.die_with_parent()

"""The zygote's second phase: build the root, preload packages, then fork one confined process per request.

Messages (JSON over SEQPACKET). To the host: `ready` (with `preload`: package → null or why it is not loaded),
`failed`, `threads` (the package that left threads), `spawned` (id; carries the pidfd), `exit` (id, signal, code).
From the host: `spawn` (id, shape), carrying the private socket, stdout and stderr.
"""

import errno
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass
from typing import NoReturn, TypedDict

from . import confine, frames, landlock, network, preload, rootfs, runner, seccomp, zygote
from . import syscalls as sc

MINIMUM_LANDLOCK = 3
"""Where Landlock is the main layer: earlier ones let files be truncated."""


class Spawn(TypedDict):
    """A request for one more sandbox."""

    id: int
    shape: confine.Shape


@dataclass
class _Child:
    id: int
    pidfd: int
    scratch: str


def serve(control: socket.socket, config: zygote.Config) -> NoReturn:
    """Prepare and answer spawn requests until the host goes away. Raises `OSError` when the machine cannot confine."""
    if config["namespaces"]:
        rootfs.build(config["tree"])
        sc.loopback_up()
    _drop_user(config)
    network.install()
    sys.path[:] = config["sys_path"]
    loaded = _preload(control, config["preload"])
    level = _level(config)
    runner.warm()
    confine.mix_randomness()  # sets OpenSSL's generator up, once for all
    confine.run_as(os.SCHED_BATCH)
    gc.collect()
    gc.freeze()
    gc.disable()
    control.send(json.dumps({"ready": True, "landlock": level.landlock, "preload": loaded}).encode())
    _Zygote(control, config, level).run()


def _drop_user(config: zygote.Config) -> None:
    """Become a user that owns nothing, without capabilities."""
    if config["host_uid"] is not None:
        uid = confine.SANDBOX_UID if config["namespaces"] else config["host_uid"]
        if not config["namespaces"]:
            os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    sc.drop_capabilities()
    sc.prctl(sc.PR_SET_DUMPABLE, 1)  # so that its own /proc/self stays writable for the id maps of children
    sc.die_with_parent()


def _preload(control: socket.socket, packages: list[str]) -> dict[str, str | None]:
    try:
        return preload.preload(packages)
    except preload.LeavesThreadsError as error:  # the host starts again without this package
        control.send(json.dumps({"threads": str(error)}).encode())
        os._exit(0)


def _level(config: zygote.Config) -> confine.Level:
    abi = landlock.version()
    if not config["namespaces"] and abi < MINIMUM_LANDLOCK:
        raise OSError(errno.ENOSYS, f"Landlock {MINIMUM_LANDLOCK} (Linux 6.2) is needed, the kernel has {abi}")
    own = config["namespaces"]
    wanted = seccomp.Filter(own_processes=own, memory_counted=config["memory_counted"], own_ipc=own)
    sources = tuple(os.path.realpath(source) for source, _ in config["tree"]["mounts"])
    devices = tuple(f"/dev/{name}" for name in rootfs.DEVICES)
    return confine.Level(
        namespaces=own,
        own_processes=own,
        memory_counted=config["memory_counted"],
        processes_counted=False,
        landlock=abi,
        readable=("/",) if own else (*sources, *devices, *rootfs.FROM_HOST),
        filter=seccomp.build(wanted),
    )


class _Zygote:
    def __init__(self, control: socket.socket, config: zygote.Config, level: confine.Level) -> None:
        self._control = control
        self._config = config
        self._level = level
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()

    def run(self) -> NoReturn:
        """Fork and reap until the host closes the socket."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._poll.register(self._control, select.POLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(self._children.pop(fd))
                elif fd == self._control.fileno():
                    self._receive()

    def _receive(self) -> None:
        body, descriptors, _, _ = socket.recv_fds(self._control, zygote.MAX_MESSAGE, 3)
        if not body:
            os._exit(0)
        request: Spawn = json.loads(body)
        try:
            self._spawn(request, (descriptors[0], descriptors[1], descriptors[2]))
        except OSError as error:
            self._control.send(json.dumps({"spawned": request["id"], "error": str(error)}).encode())
        finally:
            for fd in descriptors:
                os.close(fd)

    def _spawn(self, request: Spawn, descriptors: tuple[int, int, int]) -> None:
        scratch = "/tmp"  # noqa: S108 - the execution's own file system
        if not self._level.namespaces:
            scratch = tempfile.mkdtemp(dir=self._config["scratch"])
        parent = os.getpid()
        pid, pidfd = sc.clone(confine.NAMESPACES if self._level.namespaces else 0)
        if pid == 0:
            if not self._level.namespaces:  # otherwise it ends with the zygote's PID namespace
                sc.die_with_parent(parent)
            self._become_execution(request["shape"], descriptors, scratch)
        self._children[pidfd] = _Child(request["id"], pidfd, scratch)
        self._poll.register(pidfd, select.POLLIN)
        message = json.dumps({"spawned": request["id"], "pid": pid}).encode()
        socket.send_fds(self._control, [message], [pidfd])

    def _become_execution(self, shape: confine.Shape, descriptors: tuple[int, int, int], scratch: str) -> NoReturn:
        gc.enable()
        channel = descriptors[0]
        try:
            listener = confine.confine(self._level, shape, descriptors, scratch)
            channel = runner.CHANNEL
            with socket.socket(fileno=os.dup(channel)) as private:
                if listener is None:
                    private.send(frames.READY)
                else:
                    socket.send_fds(private, [frames.READY], [listener.fileno()])
                    listener.close()
            runner.serve(scratch)
        except BaseException as error:  # noqa: BLE001 - the last edge: say why, then end
            try:
                os.write(channel, frames.FAILED + f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(70)

    def _reap(self, child: _Child) -> None:
        self._poll.unregister(child.pidfd)
        ended = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        os.close(child.pidfd)
        if not self._level.namespaces:
            shutil.rmtree(child.scratch, ignore_errors=True)
        killed = ended is not None and ended.si_code in {os.CLD_KILLED, os.CLD_DUMPED}
        status = 0 if ended is None else ended.si_status
        message = {"exit": child.id, "signal": status if killed else None, "code": None if killed else status}
        self._control.send(json.dumps(message).encode())

"""Process 1 of a sandbox container: keeps one confined process waiting, runs one execution at a time, wipes up.

It speaks frames (`wire.py`) on its standard input and output, which the host is attached to, and ends when the host
goes away. It is root with no capabilities but to change its user id: every execution is forked with one of its own,
which is never used again in this container. What cannot be wiped ends the container.
"""

import functools
import gc
import itertools
import json
import os
import select
import signal
import socket
import sys
import sysconfig
import time
from pathlib import Path
from typing import NoReturn, TypedDict

from . import confine, frames, gate, landlock, network, preload, rootfs, runner, seccomp, wipe, wire
from . import syscalls as sc
from .channel import CHUNK, FULL, Channel

SCRATCH = "/tmp"  # noqa: S108 - the container's own file system in memory
READY_SECONDS = 20.0
OOM_COUNTERS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")
ETC = ("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/nsswitch.conf", "/etc/hostname")


class Config(TypedDict):
    """The first frame from the host."""

    shape: confine.Shape
    uids: int
    """The first user id for executions; they count up from here."""
    packages: list[str]
    preload: list[str]


class _Process:
    """The confined process of one execution, and what is open to it."""

    def __init__(self, uid: int, pid: int, sock: socket.socket, pipes: tuple[int, int]) -> None:
        self.uid, self.pid, self.sock = uid, pid, sock
        self.pipes = dict(zip(pipes, (wire.Kind.STDOUT, wire.Kind.STDERR), strict=True))
        self.number = 0
        """Of the execution; 0 while it waits."""
        self.request = bytearray()
        self.head = bytearray()
        self.received = 0
        self.mute = False
        """It closed its end of the private socket."""
        self.ended: os.waitid_result | None = None
        sock.setblocking(False)
        for fd in pipes:
            os.set_blocking(fd, False)

    @property
    def replied(self) -> bool:
        """Whether the reply is complete."""
        if len(self.head) < frames.HEADER.size:
            return False
        return self.received >= frames.HEADER.size + int(frames.HEADER.unpack(self.head)[0])

    def close(self) -> None:
        self.sock.close()
        for fd in self.pipes:
            os.close(fd)


def readable(packages: list[str]) -> tuple[str, ...]:
    """What an execution may read of the image: the interpreter, its libraries, the packages and little else."""
    own = [os.path.realpath(sys.executable), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    shared = [str(sysconfig.get_config_var("DESTSHARED") or "")]
    library = Path(sys.base_prefix, "lib")
    shared += [str(path) for path in library.glob("libpython3*.so*")]
    multiarch = str(sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu")
    system = [f"/usr/lib/{multiarch}", f"/lib/{multiarch}", "/lib64", "/usr/lib64", "/usr/share/zoneinfo"]
    devices = [f"/dev/{name}" for name in rootfs.DEVICES]
    return tuple(filter(None, [*own, *shared, *system, *devices, *rootfs.FROM_HOST, *ETC, *packages]))


def _level(config: Config) -> confine.Level:
    wanted = seccomp.Filter(own_processes=True, memory_counted=True, own_ipc=False)
    return confine.Level(
        namespaces=False,
        own_processes=True,
        memory_counted=True,
        processes_counted=True,
        landlock=landlock.version(),
        readable=readable(config["packages"]),
        filter=seccomp.build(wanted),
    )


def _kills() -> int:
    """How often the kernel killed a process of this container for memory."""
    for path in OOM_COUNTERS:
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    return 0


class Supervisor:
    """The life of a container."""

    def __init__(self, channel: Channel, config: Config, level: confine.Level) -> None:
        self._channel = channel
        self._config = config
        self._level = level
        self._uids = itertools.count(config["uids"])
        self._gate = gate.Gate(channel)
        self._children, wake = os.pipe()
        for fd in (self._children, wake):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._kills = 0
        self._process = self._fork()

    def run(self) -> NoReturn:
        """Serve the host until it is gone."""
        self._channel.send(wire.Kind.READY)
        while True:
            handlers: dict[int, gate.Handler] = {}
            poll = select.poll()
            for fd, events, handler in (*self._sources(), *self._gate.sources()):
                poll.register(fd, events)
                handlers[fd] = handler
            process = self._process
            for fd, events in poll.poll(wire.SILENCE_SECONDS * 1000):
                if self._process is process:  # else the descriptors are of one that is gone
                    handlers[fd](events)
            if time.monotonic() - self._channel.heard > wire.SILENCE_SECONDS:
                os._exit(0)

    def _sources(self) -> list[tuple[int, int, gate.Handler]]:
        process = self._process
        found: list[tuple[int, int, gate.Handler]] = [(self._children, select.POLLIN, lambda _: self._reap())]
        if len(process.request) < FULL:
            found.append((0, select.POLLIN, lambda _: self._receive()))
        if self._channel.unsent:
            found.append((1, select.POLLOUT, lambda _: self._channel.flush()))
        talk = select.POLLOUT if process.request else 0
        if not (self._channel.full or process.mute):
            talk |= select.POLLIN
        if talk and not (process.mute and not process.request):
            found.append((process.sock.fileno(), talk, self._talk))
        if not self._channel.full:
            found += [(fd, select.POLLIN, functools.partial(self._print, fd)) for fd in process.pipes]
        return found

    def _receive(self) -> None:
        for kind, number, body in self._channel.receive():
            process = self._process
            if kind == wire.Kind.RUN:
                process.number = number
                process.request += body
                self._forward()
            elif kind == wire.Kind.KILL:
                if number == process.number:
                    self._end()
            elif kind == wire.Kind.PING:
                self._channel.send(wire.Kind.PONG, number)
            else:
                self._gate.receive(kind, number, body)

    def _talk(self, events: int) -> None:
        if events & select.POLLOUT:
            self._forward()
        if events & ~select.POLLOUT:
            self._hear()

    def _forward(self) -> None:
        """Pass the request on."""
        process = self._process
        try:
            del process.request[: process.sock.send(process.request)]
        except BlockingIOError:
            return
        except OSError:  # it does not listen any more; its end is noticed by itself
            process.request.clear()

    def _hear(self) -> None:
        """Pass a piece of the reply on."""
        process = self._process
        try:
            data = process.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            process.mute = True
            return
        process.head += data[: frames.HEADER.size - len(process.head)]
        process.received += len(data)
        self._channel.send(wire.Kind.REPLY, process.number, data)
        if process.replied:
            self._end()

    def _print(self, fd: int, _: int = 0) -> bool:
        """Pass on what was printed; whether there may be more."""
        process = self._process
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            os.close(fd)
            del process.pipes[fd]
            return False
        self._channel.send(process.pipes[fd], process.number, data)
        return True

    def _reap(self) -> None:
        """Reap what ended: orphans of the execution, or the execution itself."""
        os.read(self._children, 512)
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            if ended is None:
                return
            if ended.si_pid == self._process.pid:
                self._process.ended = ended
                self._end()
                return

    def _end(self) -> None:
        """End the execution, tell all of it, wipe up, and prepare for the next."""
        process = self._process
        if not process.number:
            os._exit(71)  # it died waiting
        wipe.kill_all(process.uid)
        while not (process.replied or process.mute) and self._more():
            pass
        for fd in list(process.pipes):
            pieces = range(FULL // CHUNK)  # nothing is written any more, but a pipe may hold as much
            for _ in pieces:
                if not self._print(fd):
                    break
        kills = _kills()
        ended = process.ended
        died = ended is not None and ended.si_code in {os.CLD_KILLED, os.CLD_DUMPED}
        status = None if ended is None else ended.si_status
        self._channel.say(
            wire.Kind.END,
            process.number,
            signal=status if died else None,
            code=None if died else status,
            oom=kills > self._kills,
        )
        self._channel.wait_flushed()
        self._clean(process)
        self._kills = kills
        self._process = self._fork()
        self._channel.send(wire.Kind.READY)

    def _more(self) -> bool:
        """Read what is left of a reply; whether something came."""
        process = self._process
        try:
            data = process.sock.recv(CHUNK)
        except OSError:
            return False
        process.head += data[: frames.HEADER.size - len(process.head)]
        process.received += len(data)
        if data:
            self._channel.send(wire.Kind.REPLY, process.number, data)
        return bool(data)

    def _clean(self, process: _Process) -> None:
        """Nothing of it may be left; where something is, the container ends."""
        try:
            wipe.reap_all()
            process.close()
            self._gate.renew()
            with wipe.acting_as(process.uid):
                wipe.empty(Path(SCRATCH))
        except OSError as error:
            sys.stderr.write(f"not clean: {error}\n")
            os._exit(72)

    def _fork(self) -> _Process:
        """A confined process that waits for a request."""
        uid = next(self._uids)
        ours, theirs = socket.socketpair()
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._become_execution(uid, (theirs.fileno(), out_end, err_end))
        theirs.close()
        os.close(out_end)
        os.close(err_end)
        ours.settimeout(READY_SECONDS)
        said = ours.recv(1)
        if said != frames.READY:
            reason = ours.recv(4096).decode(errors="replace") if said else "it ended"
            raise OSError(f"an execution could not be confined: {reason}")
        return _Process(uid, pid, ours, (out, err))

    def _become_execution(self, uid: int, descriptors: tuple[int, int, int]) -> NoReturn:
        gc.enable()
        channel = descriptors[0]
        try:
            os.setsid()
            sc.write("/proc/self/oom_score_adj", "1000")  # before process 1
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            sc.prctl(sc.PR_SET_DUMPABLE, 1)
            sc.die_with_parent()
            confine.lock(self._level, self._config["shape"], descriptors, SCRATCH)
            channel = runner.CHANNEL
            os.write(channel, frames.READY)
            runner.serve(SCRATCH)
        except BaseException as error:  # noqa: BLE001 - the last edge: say why, then end
            try:
                os.write(channel, frames.FAILED + f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(70)


def _share_memory_in_tmp() -> None:
    """Named shared memory and semaphores of POSIX go where they are wiped."""
    try:
        Path("/dev/shm").symlink_to(SCRATCH)  # noqa: S108 - that is the link's name
    except OSError:  # a runtime with another /dev: multiprocessing has no semaphores then
        return


def main() -> NoReturn:
    """Become the container's supervisor."""
    os.umask(0o022)
    sc.prctl(sc.PR_SET_DUMPABLE, 0)
    channel = Channel()
    config: Config = json.loads(channel.first())
    try:
        _share_memory_in_tmp()
        network.install()
        sys.path[:] = [*sys.path, *config["packages"]]
        preload.preload(config["preload"])
        level = _level(config)
        runner.warm()
        confine.mix_randomness()
        gc.collect()
        gc.freeze()
        gc.disable()
        supervisor = Supervisor(channel, config, level)
    except preload.LeavesThreadsError as error:
        channel.say(wire.Kind.FAILED, threads=str(error))
    except OSError as error:
        channel.say(wire.Kind.FAILED, reason=str(error))
    else:
        mark, interpreter = wire.fingerprint(), wire.interpreter()
        channel.say(wire.Kind.HELLO, fingerprint=mark, interpreter=interpreter, landlock=level.landlock)
        supervisor.run()
    channel.wait_flushed()
    os._exit(70)

"""The host's side of one zygote: start it, ask it for sandboxes, hear of their end, notice its own."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from sinas_server.backends.sandbox import Limits, SandboxUnavailable, guest
from sinas_server.backends.sandbox.guest import frames
from sinas_server.backends.sandbox.guest.zygote import MAX_MESSAGE, Config
from sinas_server.backends.sandbox.member import SpawnError
from sinas_server.backends.sandbox.outcome import Exit

START_SECONDS = 60.0
SPAWN_SECONDS = 20.0
SANDBOX_UID = 65534
_GUEST_PARENT = str(Path(guest.__file__).parent.parent)
_PROGRAM = (
    "import sys; sys.path.insert(0, {path!r}); from guest import zygote; del sys.path[0]; zygote.main(int(sys.argv[1]))"
)


class ZygoteGoneError(SpawnError):
    """The zygote died; a new one must be started."""


class _Message(TypedDict, total=False):
    ready: bool
    landlock: int
    preload: dict[str, str | None]
    failed: str
    threads: str
    spawned: int
    error: str
    exit: int
    signal: int | None
    code: int | None


@dataclass(eq=False)
class Child:
    """One sandbox: a confined process waiting for its request, or running it."""

    id: int
    sock: socket.socket
    stdout: int
    stderr: int
    exited: "asyncio.Future[Exit]"
    pidfd: int = -1
    pid: int = 0
    """On the host."""
    listener: socket.socket | None = None
    """The port inside the sandbox on which the host serves the egress proxy."""

    def kill(self) -> None:
        """Kill the process and, as it is the first of its PID namespace, everything it started.

        Also when `exited` is settled: the end of a zygote settles it for its sandboxes, and one that was just being
        made may have outlived it.
        """
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Free the descriptors."""
        self.sock.close()
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        for fd in (self.stdout, self.stderr, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.stdout = self.stderr = self.pidfd = -1


@dataclass(frozen=True)
class Started:
    """What the zygote said when it became ready."""

    landlock: int
    """The Landlock version in use; 0 for none."""
    preload: dict[str, str | None]
    """Each package: None when it is loaded, otherwise why not."""


class Zygote:
    """A running zygote."""

    def __init__(self, control: socket.socket, process: "subprocess.Popen[bytes]", started: Started) -> None:
        self.started = started
        self._control = control
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._children: dict[int, Child] = {}
        self._spawning: dict[int, asyncio.Future[int]] = {}
        self._last = 0
        self._on_death: list[Callable[[], None]] = []
        self._on_childless: list[asyncio.Future[None]] = []
        self.alive = True
        self.packages: str | None = None
        """The hash of the set of packages that it shows."""
        self._loop.add_reader(control.fileno(), self._receive)

    @property
    def pid(self) -> int:
        """The host pid of the process started by us; the others hang on it."""
        return self._process.pid

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call when the zygote has died by itself."""
        self._on_death.append(callback)

    async def childless(self) -> None:
        """Wait until every sandbox it has made is gone."""
        if self._children:
            gone: asyncio.Future[None] = self._loop.create_future()
            self._on_childless.append(gone)
            await gone

    def _note_childless(self) -> None:
        if not self._children:
            for waiting in self._on_childless:
                if not waiting.done():
                    waiting.set_result(None)
            self._on_childless.clear()

    async def spawn(self, limits: Limits) -> Child:
        """A confined process that is ready for a request. Raises `SpawnError`."""
        if not self.alive:
            raise ZygoteGoneError("the zygote is not running")
        try:
            child, sent = self._ask(limits)
        except OSError as error:  # too many open files, or the zygote does not answer
            raise SpawnError(f"no sandbox could be asked for: {error}") from error
        try:
            async with asyncio.timeout(SPAWN_SECONDS):
                child.pidfd = await sent
                child.pid = _pid_of(child.pidfd)
                await self._until_ready(child)
        except BaseException as error:
            self._spawning.pop(child.id, None)
            if child.pidfd < 0 and sent.done() and not sent.cancelled() and sent.exception() is None:
                child.pidfd = sent.result()  # it came in the moment in which nobody waited any more
            child.kill()
            child.close()
            if isinstance(error, (OSError, TimeoutError)):
                raise SpawnError(f"no sandbox could be made: {error}") from error
            raise
        return child

    def _ask(self, limits: Limits) -> tuple[Child, "asyncio.Future[int]"]:
        """Send for one more; gives it, and what its pidfd will come to. Raises `OSError`."""
        self._last += 1
        shape = {
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes,
            "tmp_bytes": limits.tmp_bytes,
        }
        message = json.dumps({"id": self._last, "shape": shape}).encode()
        with contextlib.ExitStack() as kept, contextlib.ExitStack() as given:
            ours, theirs = socket.socketpair()
            kept.callback(ours.close)
            given.callback(theirs.close)
            (out, out_end), (err, err_end) = _pipe(kept, given), _pipe(kept, given)
            for fd in (ours.fileno(), out, err):
                os.set_blocking(fd, False)
            socket.send_fds(self._control, [message], [theirs.fileno(), out_end, err_end])
            kept.pop_all()
        child = Child(self._last, ours, out, err, self._loop.create_future())
        sent: asyncio.Future[int] = self._loop.create_future()
        self._spawning[child.id] = sent
        self._children[child.id] = child
        return child, sent

    async def _until_ready(self, child: Child) -> None:
        await readable(child.sock.fileno())
        body, descriptors, _, _ = socket.recv_fds(child.sock, 1, 1)
        if descriptors:
            child.listener = socket.socket(fileno=descriptors[0])
        if body != frames.READY:
            reason = child.sock.recv(4096).decode(errors="replace") if body else "it ended"
            raise SpawnError(f"a sandbox could not be set up: {reason}")

    def _receive(self) -> None:
        while self.alive:
            try:
                body, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE, 1)
            except BlockingIOError:
                return
            except OSError:
                body, descriptors = b"", []
            if not body:
                self._died()
                return
            self._dispatch(json.loads(body), descriptors)

    def _dispatch(self, message: _Message, descriptors: list[int]) -> None:
        if "spawned" in message:
            waiting = self._spawning.pop(message["spawned"], None)
            if waiting is not None and not waiting.done():
                if descriptors:
                    waiting.set_result(descriptors.pop())
                else:
                    waiting.set_exception(SpawnError(message.get("error", "no descriptor came")))
            if "error" in message:  # of what was never there no end is told
                self._children.pop(message["spawned"], None)
                self._note_childless()
        elif "exit" in message:
            child = self._children.pop(message["exit"], None)
            if child is not None and not child.exited.done():
                child.exited.set_result(Exit(message.get("signal"), message.get("code")))
            self._note_childless()
        for fd in descriptors:  # of a spawn that nobody waits for any more
            with contextlib.suppress(ProcessLookupError):  # it has seen so itself
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)

    def _died(self) -> None:
        self._stop()
        for callback in self._on_death:
            callback()

    def _stop(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        for waiting in self._spawning.values():
            if not waiting.done():
                waiting.set_exception(ZygoteGoneError("the zygote died"))
        for child in self._children.values():
            if not child.exited.done():
                child.exited.set_result(Exit(signal.SIGKILL, None, restarted=True))
        self._spawning.clear()
        self._children.clear()
        self._note_childless()
        self._process.kill()  # and with it, by PDEATHSIG and the PID namespace, everything below

    async def close(self) -> None:
        """Kill the zygote with every sandbox of it, and reap it."""
        self._stop()
        if self._process.returncode is not None:
            return
        pidfd = os.pidfd_open(self._process.pid)
        try:
            await readable(pidfd)
        finally:
            os.close(pidfd)
        self._process.wait()


async def start(executable: str, config: Config) -> Zygote:
    """Start a zygote and wait until it is ready, from the process' main thread.

    Raises `SandboxUnavailable` with the kernel's reason.
    """
    try:
        ours, process = _launch(executable)
    except OSError as error:  # no memory, too many processes or open files
        raise SandboxUnavailable(f"the sandbox zygote did not start: {error}") from error
    try:
        async with asyncio.timeout(START_SECONDS):
            return Zygote(ours, process, await _greet(ours, process, config))
    except BaseException as error:
        ours.close()
        process.kill()
        process.wait()
        if isinstance(error, (OSError, TimeoutError)):
            raise SandboxUnavailable(f"the sandbox zygote did not start: {error}") from error
        raise


def _launch(executable: str) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """A process that waits for its configuration, and our end of the socket to it. Raises `OSError`."""
    with contextlib.ExitStack() as kept:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept.callback(ours.close)
        with theirs:
            program = _PROGRAM.format(path=_GUEST_PARENT)
            process = subprocess.Popen(  # noqa: S603 - our own; PDEATHSIG binds it to this very thread
                [executable, "-I", "-S", "-B", "-X", "utf8", "-c", program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={"LANG": "C.UTF-8", "HOME": "/tmp", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # noqa: S108 - inside the sandbox
                cwd="/",
                stdin=subprocess.DEVNULL,
            )
        ours.setblocking(False)
        kept.pop_all()
    return ours, process


async def _greet(control: socket.socket, process: "subprocess.Popen[bytes]", config: Config) -> Started:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(control, json.dumps(config).encode())
    while True:
        body = await loop.sock_recv(control, MAX_MESSAGE)
        if not body:
            raise SandboxUnavailable("the sandbox zygote ended while starting; see its message on standard error")
        message = json.loads(body)
        if "map" in message:
            write_id_maps(process.pid, config["host_uid"])
            await loop.sock_sendall(control, b"{}")
        elif "failed" in message:
            raise SandboxUnavailable(message["failed"])
        elif "threads" in message:
            raise LeavesThreadsError(message["threads"])
        else:
            return Started(message["landlock"], message["preload"])


class LeavesThreadsError(Exception):
    """A package cannot be preloaded because importing it starts threads; the argument is its name."""


def write_id_maps(pid: int, host_uid: int | None) -> None:
    """Map the ids of a new user namespace. Raises `OSError`.

    As root, inside 0 is real 0 only to build the root directory; executions have `host_uid`. As an ordinary user,
    inside 0 is never mapped: nested maps would then need a capability.
    """
    proc = Path(f"/proc/{pid}")
    if host_uid is not None:
        both = f"0 0 1\n{SANDBOX_UID} {host_uid} 1\n"
        _write(proc / "uid_map", both)
        _write(proc / "gid_map", both)
        return
    _write(proc / "setgroups", "deny")
    _write(proc / "uid_map", f"{SANDBOX_UID} {os.geteuid()} 1")
    _write(proc / "gid_map", f"{SANDBOX_UID} {os.getegid()} 1")


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _pipe(kept: contextlib.ExitStack, given: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe: the end that is read, and the one to be written."""
    out, end = os.pipe()
    kept.callback(os.close, out)
    given.callback(os.close, end)
    return out, end


def _pid_of(pidfd: int) -> int:
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pid:"))


async def readable(fd: int) -> None:
    """Wait until a descriptor can be read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, note)
    try:
        await ready
    finally:
        loop.remove_reader(fd)

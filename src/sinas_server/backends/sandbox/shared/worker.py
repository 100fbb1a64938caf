"""One shared worker on the host's side: its process, the messages to and from it, and its end."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path

from sinas_server.backends.sandbox import OnOutput, Outcome, SandboxLost, SandboxUnavailable, Task, guest
from sinas_server.backends.sandbox.config import GUEST_PLATFORM_HOST, GUEST_PLATFORM_PORT
from sinas_server.backends.sandbox.guest import frames, messages, rootfs
from sinas_server.backends.sandbox.guest.shared import Config
from sinas_server.backends.sandbox.native.interpreter import Interpreter
from sinas_server.backends.sandbox.shared.config import SharedConfig
from sinas_server.backends.sandbox.shared.task import SharedTask
from sinas_server.kit.clock import now

START_SECONDS = 30.0
MAX_MESSAGE = 64 << 20
SCRATCH = "sinas-shared-"
NETWORK_FILES = tuple(f"/etc/{name}" for name in ("hosts", "resolv.conf", "nsswitch.conf", "host.conf", "gai.conf"))
_GUEST_PARENT = str(Path(guest.__file__).parent.parent)
_PROGRAM = (
    "import sys; sys.path.insert(0, {path!r}); from guest import shared; del sys.path[0]; shared.main(int(sys.argv[1]))"
)
END_SECONDS = 1.0
"""How long a worker that has closed its channel has for ending by itself."""

Channel = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class SharedWorker:
    """A running worker process with its tasks."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: Channel, scratch: str, config: SharedConfig
    ) -> None:
        self.created_at: datetime = now()
        self.executions = 0
        self.draining = False
        self.stuck = False
        """Whether one of its threads does not stop."""
        self.alive = True
        self._process = process
        self._reader, self._writer = channel
        self._scratch = scratch
        self._stop_seconds = config.stop_seconds
        self.package_hash = config.package_hash
        self._idle = asyncio.Event()
        self._tasks: dict[int, SharedTask] = {}
        self._numbers = itertools.count(1)
        self._ended = asyncio.ensure_future(self._receive())

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def running(self) -> int:
        """How many tasks it has, those that wait for a person too."""
        return len(self._tasks)

    async def run(self, task: Task, on_output: OnOutput | None) -> Outcome:
        """Run a task to its end. Raises `SandboxLost` if the process ends before; canceled, it stops the task."""
        number = next(self._numbers)
        shared = self._tasks[number] = SharedTask(task, on_output, partial(self._send, number))
        self.executions += 1
        self._idle.clear()
        shared.start()
        try:
            # Not the future itself: canceling would end that, but the thread is still there.
            await asyncio.wait([shared.outcome])
        except asyncio.CancelledError:
            shared.stop()
            shared.outcome.cancel()  # nobody is left who would take an error from it
            raise
        return shared.outcome.result()

    def _send(self, number: int, sort: int, payload: bytes) -> None:
        if self.alive:
            self._writer.write(messages.pack(sort, number, payload))
        if sort == messages.STOP:
            asyncio.get_running_loop().call_later(self._stop_seconds, self._give_up, number)

    async def _receive(self) -> None:
        """Take messages until the process ends, then tell its tasks."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, ValueError, struct.error):
            while True:
                size = frames.HEADER.unpack(await self._reader.readexactly(frames.HEADER.size))[0]
                if size > MAX_MESSAGE:
                    break
                self._dispatch(*messages.unpack(await self._reader.readexactly(size)))
        self.alive = False
        with contextlib.suppress(TimeoutError):  # asyncio does not learn how a process has ended that is killed then
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        self.kill()
        status = await self._process.wait()
        self._writer.close()
        lost = SandboxLost(f"its shared worker {_describe(status)}")
        for task in self._tasks.values():
            task.end(error=lost)
        self._tasks.clear()
        self._idle.set()
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    def _dispatch(self, sort: int, number: int, payload: bytes) -> None:
        task = self._tasks.get(number)
        if task is not None:
            task.receive(sort, payload)
        if sort == messages.DONE:
            self._forget(number)

    def _forget(self, number: int) -> SharedTask | None:
        task = self._tasks.pop(number, None)
        if not self._tasks:
            self._idle.set()
        return task

    def _give_up(self, number: int) -> None:
        """A thread that does not stop: nothing but the end of the process ends it."""
        task = self._forget(number)
        if task is not None:
            task.end()
            self.stuck = True

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left of it."""
        return self._ended.done()

    def memory(self) -> int:
        """Bytes of memory that it occupies; 0 once it is gone."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """End it now."""
        self.alive = False
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def finish(self, seconds: float) -> None:
        """Kill it when it has nothing left, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if self._tasks:
                    await self._idle.wait()
        self.kill()
        await self.wait()

    async def wait(self) -> None:
        """Until it has ended and its tasks know."""
        await asyncio.wait([self._ended])


def _describe(status: int) -> str:
    if status >= 0:
        return f"ended with exit code {status}"
    return f"was killed by {signal.Signals(-status).name}" if -status in set(signal.Signals) else "was killed"


async def start_worker(config: SharedConfig, interpreter: Interpreter) -> SharedWorker:
    """A worker that is ready. Raises `SandboxUnavailable` with the reason."""
    try:
        scratch = await asyncio.to_thread(tempfile.mkdtemp, prefix=f"{SCRATCH}{os.getpid()}-")
        ours, theirs = socket.socketpair()
    except OSError as error:  # no space, or too many open files
        raise SandboxUnavailable(f"a shared worker did not start: {error}") from error
    ours.setblocking(False)
    process: asyncio.subprocess.Process | None = None
    channel: Channel | None = None
    try:
        async with asyncio.timeout(START_SECONDS):
            with theirs:
                process = await _launch(interpreter, theirs)
            channel = await asyncio.open_unix_connection(sock=ours)
            channel[1].write(frames.pack(json.dumps(_guest_config(config, interpreter, scratch)).encode()))
            size = frames.HEADER.unpack(await channel[0].readexactly(frames.HEADER.size))[0]
            await channel[0].readexactly(size)
    except BaseException as error:
        (channel[1] if channel else ours).close()
        status = await _abandon(process)
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        if isinstance(error, (OSError, TimeoutError, asyncio.IncompleteReadError)):
            raise SandboxUnavailable(f"a shared worker did not start: it {_describe(status)}; see its log") from error
        raise
    return SharedWorker(process, channel, scratch, config)


async def _launch(interpreter: Interpreter, channel: socket.socket) -> asyncio.subprocess.Process:
    flags = ["-I", "-S", "-B", "-X", "utf8"]
    return await asyncio.create_subprocess_exec(
        *[interpreter.executable, *flags, "-c", _PROGRAM.format(path=_GUEST_PARENT), str(channel.fileno())],
        pass_fds=[channel.fileno()],
        env={"LANG": "C.UTF-8"},
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


async def _abandon(process: asyncio.subprocess.Process | None) -> int:
    """End a process that did not become a worker; gives its exit status."""
    if process is None:
        return 0
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    return await process.wait()


def _guest_config(config: SharedConfig, interpreter: Interpreter, scratch: str) -> Config:
    packages = [str(path) for path in config.packages]
    devices = [f"/dev/{name}" for name in rootfs.DEVICES]
    libraries = [source for source, _ in interpreter.mounts]
    return {
        "sys_path": [*interpreter.sys_path, *packages],
        "readable": [*libraries, *packages, *devices, *rootfs.FROM_HOST, *NETWORK_FILES, "/proc"],
        "scratch": scratch,
        "env": {
            "HOME": scratch,
            "TMPDIR": scratch,
            "LANG": "C.UTF-8",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "SINAS_URL": f"http://{GUEST_PLATFORM_HOST}:{GUEST_PLATFORM_PORT}",
        },
        "platform": (GUEST_PLATFORM_HOST, GUEST_PLATFORM_PORT, *config.platform),
    }

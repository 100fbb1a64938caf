"""The workers of a shared pool: started when the first task comes, given tasks in turn, replaced when they must be."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sinas_server.backends.sandbox import (
    Level,
    MemberStats,
    OnOutput,
    Outcome,
    PackageSet,
    SandboxUnavailable,
    Stats,
    Task,
)
from sinas_server.backends.sandbox.native.interpreter import Interpreter, inspect
from sinas_server.backends.sandbox.shared.config import SharedConfig
from sinas_server.backends.sandbox.shared.worker import SCRATCH, SharedWorker, start_worker
from sinas_server.kit.clock import now

LOOK_SECONDS = 1.0
"""How often memory is looked at."""


@dataclass(frozen=True)
class WorkerState:
    """A worker at this moment."""

    pid: int
    created_at: datetime
    executions: int
    """How many it has taken up since it was started."""
    running: int
    draining: bool


class SharedPool:
    """A `Sandbox` for trusted code. Use it in one event loop, in the process' main thread."""

    def __init__(self, config: SharedConfig) -> None:
        self._config = config
        self._own_packages = config.packages
        self._packages: PackageSet | None = None
        self._switching = asyncio.Lock()
        self._wanted = config.count
        self._interpreter: Interpreter | None = None
        self._workers: list[SharedWorker] = []
        self._starting = 0
        self._turn = 0
        self._problem = ""
        self._used = self._closed = False
        self._changed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing is started before it is needed; what earlier processes left behind is removed."""
        await asyncio.to_thread(_sweep)

    async def run(self, task: Task, on_output: OnOutput | None = None) -> Outcome:
        """Run one task in the next worker. Raises `SandboxUnavailable` and `SandboxLost`."""
        worker = await self._next()
        return await worker.run(task, on_output)

    @property
    def level(self) -> Level:
        """That tasks are not isolated from each other."""
        return Level("shared", "trusted code in threads of confined processes, which share their memory")

    def stats(self) -> Stats:
        """The workers with nothing to do, and those with something."""
        idle: list[MemberStats] = []
        in_use: list[MemberStats] = []
        for worker in self._usable():
            age = (now() - worker.created_at).total_seconds()
            (in_use if worker.running else idle).append(MemberStats(str(worker.pid), worker.executions, age))
        return Stats(self._wanted, 0, tuple(idle), tuple(in_use))

    def workers(self) -> list[WorkerState]:
        """Every worker there is, those that are being replaced too."""
        return [
            WorkerState(worker.pid, worker.created_at, worker.executions, worker.running, worker.draining)
            for worker in self._workers
        ]

    def warm(self) -> None:
        """Start the workers, if they were not yet."""
        if not self._used:
            self._used = True
            self._spawn(self._watch())
        self._fill()

    async def reload(self) -> int:
        """Replace every worker by one with the same packages; gives how many. Raises `SandboxUnavailable`."""
        replaced = len(self._usable())
        await self.use(self._packages)
        return replaced

    async def scale(self, target: int) -> int:
        """Have this many workers from now on; those that are too many finish what they have. Gives how many there are.

        Before the first task nothing is started.
        """
        self._wanted = target
        for worker in self._usable()[target:]:
            self._drain(worker)
        self._fill()
        return len(self._usable())

    async def has(self, name: str) -> bool:
        """Whether a worker has this process id."""
        return self._named(name) is not None

    async def restart(self, name: str) -> bool:
        """Replace the worker with this process id, which finishes what it runs. Raises `SandboxUnavailable`."""
        worker = self._named(name)
        if worker is None:
            raise SandboxUnavailable(f"there is no shared worker with the process id {name}")
        self._drain(worker)
        self._fill()
        return True

    def _named(self, name: str) -> SharedWorker | None:
        return next((worker for worker in self._usable() if str(worker.pid) == name), None)

    async def use(self, packages: PackageSet | None) -> None:
        """Replace every worker by one with these packages. Raises `SandboxUnavailable`; then nothing has changed."""
        async with self._switching:
            found = () if packages is None else (packages.path,)
            package_hash = None if packages is None else packages.hash
            config = replace(self._config, packages=(*self._own_packages, *found), package_hash=package_hash)
            fresh = await start_worker(config, await self._inspected()) if self._used else None
            old, self._config, self._packages = self._usable(), config, packages
            if fresh is not None:
                self._workers.append(fresh)
            for worker in old:
                self._drain(worker)
            await self.scale(self._wanted)  # which may be none, and the fresh one too many

    def packages_in_use(self) -> frozenset[str]:
        """The hashes of the sets that what is alive was started with, or is just being started with."""
        hashes = (self._config.package_hash, *(worker.package_hash for worker in self._workers))
        return frozenset(found for found in hashes if found is not None)

    async def close(self) -> None:
        """Kill every worker."""
        self._closed = True
        self._changed.set()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            await worker.wait()

    def _usable(self) -> list[SharedWorker]:
        return [worker for worker in self._workers if worker.alive and not worker.draining]

    async def _next(self) -> SharedWorker:
        """The worker whose turn it is."""
        self.warm()
        self._fill(at_least=1)
        while not (usable := self._usable()):
            if self._closed:
                raise SandboxUnavailable("the shared pool is closed")
            if not self._starting:
                if self._problem:
                    raise SandboxUnavailable(self._problem)
                self._fill(at_least=1)  # what was started for us was drained at once, or has died
            self._changed.clear()
            await self._changed.wait()
        self._turn = (self._turn + 1) % len(usable)
        return usable[self._turn]

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _fill(self, at_least: int = 0) -> None:
        """Start what is missing, once the pool is in use."""
        if not self._used or self._closed:
            return
        for _ in range(max(self._wanted, at_least) - len(self._usable()) - self._starting):
            self._starting += 1
            self._spawn(self._add())

    async def _add(self) -> None:
        config = self._config
        try:
            worker = await start_worker(config, await self._inspected())
            self._workers.append(worker)  # apart from the line above: meanwhile it may have become another list
            self._problem = ""
            if config is not self._config or len(self._usable()) > max(self._wanted, 1):
                self._drain(worker)  # meanwhile other packages came into use, or fewer are wanted
        except SandboxUnavailable as error:
            self._problem = str(error)
        finally:
            self._starting -= 1
            self._changed.set()
        if not self._problem:
            self._fill()

    async def _inspected(self) -> Interpreter:
        if self._interpreter is None:
            self._interpreter = await asyncio.to_thread(inspect, self._config.python)
        return self._interpreter

    def _drain(self, worker: SharedWorker) -> None:
        worker.draining = True
        self._spawn(worker.finish(self._config.drain_seconds))

    async def _watch(self) -> None:
        """Replace workers that have ended, that hold a thread that does not stop, or that have grown too large."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._workers = [worker for worker in self._workers if not worker.has_ended]
            for worker in self._usable():
                if worker.stuck or worker.memory() > self._config.memory_bytes:
                    self._drain(worker)
            self._fill()


def _sweep() -> None:
    """Remove the scratch directories of processes that are gone."""
    for found in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        pid = found.name.removeprefix(SCRATCH).partition("-")[0]
        if pid.isdigit() and int(pid) != os.getpid() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(found, ignore_errors=True)

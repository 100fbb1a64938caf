"""The pool of every driver: sandboxes made ahead of time, handed out, taken back or replaced in the background."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Generic, TypeVar

from sinas_server.backends.sandbox import Limits, MemberStats, SandboxBusy, SandboxUnavailable, Stats
from sinas_server.backends.sandbox.member import Member, Source, SpawnError

PARALLEL_SPAWNS = 3
FIRST_RETRY, LAST_RETRY = 0.05, 5.0
FILL_SECONDS = 0.005


@dataclass(frozen=True)
class PoolSize:
    """How many sandboxes to keep."""

    min_size: int
    max_size: int
    min_idle: int
    acquire_timeout: float
    max_executions: int = 1
    """After so many a sandbox is replaced."""


M = TypeVar("M", bound=Member)


def same_shape(one: Limits, other: Limits) -> bool:
    """Whether a sandbox made for `one` serves `other`: what is fixed when it is made."""
    return (one.memory_bytes, one.cpus, one.processes, one.tmp_bytes) == (
        other.memory_bytes,
        other.cpus,
        other.processes,
        other.tmp_bytes,
    )


@dataclass
class _Record:
    """What the pool knows of a sandbox."""

    generation: int
    born: float
    idle_since: float = 0.0


class Pool(Generic[M]):
    """Hands out sandboxes, each to one execution at a time."""

    def __init__(self, size: PoolSize, limits: Limits, source: Source[M]) -> None:
        self._size = size
        self._limits = limits
        self._source = source
        self._floor = size.min_size
        """The fewest to keep, idle and in use: `min_size` until it is scaled."""
        self._surplus = 0
        """How many of those in use are to end when they are given back."""
        self._generation = 0
        self._records: dict[M, _Record] = {}
        self._idle: deque[M] = deque()
        self._used: dict[M, None] = {}
        self._renewing: dict[M, None] = {}
        """Given back, and not ready yet."""
        self._waiting: deque[asyncio.Future[M]] = deque()
        self._reserved = 0
        """Places of callers whose sandbox is being made for them."""
        self._starting = 0
        self._ending = 0
        self._problem = ""
        self._retry = FIRST_RETRY
        self._closed = False
        self._wake = asyncio.Event()
        self._filling: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Make the first sandboxes. Raises `SandboxUnavailable`."""
        self._spawn_task(self._keep_full())
        while len(self._idle) < min(self._size.min_size, self._size.max_size):
            if self._problem:
                raise SandboxUnavailable(self._problem)
            await asyncio.sleep(0.005)

    def stats(self) -> Stats:
        """The state now."""
        return Stats(
            max_size=self._size.max_size,
            max_executions=self._size.max_executions,
            idle_members=tuple(map(self._describe, (*self._idle, *self._renewing))),
            in_use_members=tuple(map(self._describe, self._used)),
        )

    def _describe(self, member: M) -> MemberStats:
        return MemberStats(member.name, member.executions, time.monotonic() - self._records[member].born)

    def wake(self) -> None:
        """Look at once whether something is to be done: the source has changed."""
        self._wake.set()

    def _spawn_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _in_use(self) -> int:
        return len(self._used) + self._reserved

    def _alive(self) -> int:
        return len(self._idle) + self._in_use + self._starting + self._ending

    async def take(self, limits: Limits) -> M:
        """A sandbox for one execution. After the acquire timeout raises `SandboxBusy`, or why none can be made."""
        if self._closed:
            raise SandboxUnavailable("the sandbox is closed")
        member = await self._next()
        return member if same_shape(limits, member.limits) else await self._reshape(member, limits)

    async def _next(self) -> M:
        if self._idle and not self._waiting:
            self._wake.set()
            return self._hand_out(self._idle.popleft())
        waiting: asyncio.Future[M] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._wake.set()
        try:
            async with asyncio.timeout(self._size.acquire_timeout):
                return await waiting
        except BaseException as error:
            self._forget(waiting)
            if isinstance(error, TimeoutError):
                raise (SandboxUnavailable if self._problem else SandboxBusy)(self._busy()) from error
            raise

    def _hand_out(self, member: M) -> M:
        self._used[member] = None
        return member

    def _forget(self, waiting: "asyncio.Future[M]") -> None:
        """The caller left; a sandbox that came in the same moment goes back."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(waiting)
        if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            self.give_back(waiting.result())

    async def _reshape(self, member: M, limits: Limits) -> M:
        """A sandbox with other limits than the pool's, in the place of a pooled one."""
        del self._used[member]
        self._retire(member)
        self._reserved += 1
        try:
            return self._hand_out(await self._make(limits))
        except SpawnError as error:
            raise SandboxUnavailable(str(error)) from error
        finally:
            self._reserved -= 1
            self._wake.set()

    def _busy(self) -> str:
        size = self._size
        problem = f"; last problem: {self._problem}" if self._problem else ""
        return (
            f"no sandbox became free within {size.acquire_timeout:g} s: {self._in_use} of {size.max_size} are in use"
            f"{problem}"
        )

    def give_back(self, member: M) -> None:
        """A used sandbox: used again if it can be, otherwise ended, and a new one is made."""
        del self._used[member]
        fits = same_shape(member.limits, self._limits) and member.executions < self._size.max_executions
        unwanted = self._surplus > 0
        self._surplus -= unwanted
        if self._closed or unwanted or not fits or self._outdated(member):
            self._retire(member)
            return
        self._starting += 1
        self._renewing[member] = None
        self._spawn_task(self._renew(member))

    def _outdated(self, member: M) -> bool:
        return self._records[member].generation != self._generation

    async def _renew(self, member: M) -> None:
        usable = False
        try:
            usable = await member.renewed()
        finally:
            self._starting -= 1
            del self._renewing[member]
            self._wake.set()
            if not usable or self._closed or self._outdated(member):
                self._retire(member)
            else:
                self._offer(member)

    def _retire(self, member: M) -> None:
        member.kill()
        self._records.pop(member, None)
        self._ending += 1
        self._spawn_task(self._bury(member))
        self._wake.set()

    async def _bury(self, member: M) -> None:
        try:
            await member.bury()
        finally:
            self._ending -= 1
            self._wake.set()

    def _wanted_idle(self) -> int:
        return max(self._size.min_idle, self._floor - self._in_use)

    def _wanted(self, idle: int) -> int:
        """How many more sandboxes to start now for so many idle ones."""
        missing = len(self._waiting) + idle - len(self._idle) - self._starting
        return max(0, min(missing, self._size.max_size - self._alive(), PARALLEL_SPAWNS - self._starting))

    async def _keep_full(self) -> None:
        while not self._closed:
            self._wake.clear()
            if self._source.broken:
                try:
                    await self._source.repair()
                    self._retry = FIRST_RETRY
                except (SandboxUnavailable, OSError) as error:  # whatever it is: nobody else would try again
                    await self._fail(str(error))
                continue
            self._start_for(self._size.min_idle)
            if self._filling is None and self._wanted(self._wanted_idle()):
                # Not in the moment in which the execution that has just ended is being answered.
                self._filling = asyncio.get_running_loop().call_later(FILL_SECONDS, self._fill)
            await self._wake.wait()

    async def _fail(self, problem: str) -> None:
        """Remember what went wrong and wait before the next attempt, longer each time."""
        self._problem = problem
        pause, self._retry = self._retry, min(2 * self._retry, LAST_RETRY)
        await asyncio.sleep(pause)

    def _fill(self) -> None:
        self._filling = None
        if not self._closed and not self._source.broken:
            self._start_for(self._wanted_idle())

    def _start_for(self, idle: int) -> None:
        for _ in range(self._wanted(idle)):
            self._starting += 1
            self._spawn_task(self._add())

    async def _make(self, limits: Limits) -> M:
        generation = self._generation
        member = await self._source.make(limits)
        self._records[member] = _Record(generation, time.monotonic())
        return member

    async def _add(self) -> None:
        member: M | None = None
        try:
            member = await self._make(self._limits)
            self._problem, self._retry = "", FIRST_RETRY
        except SpawnError as error:
            await self._fail(str(error))
        finally:
            self._starting -= 1
            self._wake.set()
        if member is None:
            return
        member.when_gone(lambda: self._lost(member))
        if self._closed or self._outdated(member):
            self._retire(member)
        else:
            self._offer(member)

    def _offer(self, member: M) -> None:
        """To who waits for it, else to the idle ones."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(self._hand_out(member))
                return
        if member.executions == 0 and len(self._idle) >= self._wanted_idle():  # who waited for it has left
            self._retire(member)
            return
        self._records[member].idle_since = time.monotonic()
        self._idle.append(member)

    def _lost(self, member: M) -> None:
        """A sandbox died before use."""
        if member in self._idle:
            self._idle.remove(member)
            self._retire(member)

    async def scale(self, target: int) -> int:
        """Keep so many from now on, at most `max_size`; what runs is not touched. Gives how many there are then.

        Waits for the new ones at most as long as a caller would.
        """
        self._floor = min(target, self._size.max_size)
        while len(self._idle) > self._wanted_idle():
            self._retire(self._idle.popleft())
        self._surplus = max(0, self._in_use + len(self._idle) - max(self._floor, self._size.min_idle))
        self._wake.set()
        await self._until(lambda: self.stats().total >= self._floor)
        return self.stats().total

    async def replace(self) -> int:
        """Make all idle sandboxes anew; one in use is replaced when it is given back. Gives how many are renewed.

        Waits for the new ones at most as long as a caller would.
        """
        wanted = len(self._idle)
        self.outdate()
        await self._until(lambda: len(self._idle) >= min(wanted, self._wanted_idle()))
        return min(wanted, len(self._idle))

    def outdate(self) -> None:
        """Replace all sandboxes made until now: the idle ones at once, the others when they are given back."""
        self._generation += 1
        while self._idle:
            self._retire(self._idle.popleft())
        self._wake.set()

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait for the pool to get there; not longer than a caller would, and not when it cannot."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._size.acquire_timeout):
                while not reached():
                    if self._closed or self._problem:
                        return
                    await asyncio.sleep(0.01)

    def packages_in_use(self) -> frozenset[str]:
        """The hashes of the sets of packages that sandboxes were made with."""
        return frozenset(member.packages for member in self._records if member.packages)

    def members(self) -> list[M]:
        """All sandboxes, those in use too."""
        return [*self._idle, *self._renewing, *self._used]

    def find(self, name: str) -> M | None:
        """The sandbox of this name."""
        return next((member for member in self.members() if member.name == name), None)

    def restart(self, member: M) -> None:
        """End a sandbox with what runs in it; another one is made in its place."""
        if member in self._idle:
            self.remove(member)
        else:
            member.kill()  # whoever uses it gives it back, and it turns out to be useless

    def remove(self, member: M) -> None:
        """End an idle sandbox; one that is not idle any more is left alone."""
        self._lost(member)

    def trim(self, idle_seconds: float) -> None:
        """End what has waited for so long and is more than the pool has to keep."""
        before = time.monotonic() - idle_seconds
        for member in list(self._idle):
            if len(self._idle) > self._wanted_idle() and self._records[member].idle_since < before:
                self.remove(member)

    async def close(self) -> None:
        """Kill everything and free it."""
        self._closed = True
        self._wake.set()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(SandboxUnavailable("the sandbox is closed"))
        while self._idle:
            self._retire(self._idle.popleft())
        await self._source.close()
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        await self._source.close()  # one that was being started meanwhile

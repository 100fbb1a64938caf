"""The pool: confined processes made ahead of time, each used once and replaced in the background."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from sinas_server.backends.sandbox import Limits, SandboxBusy, SandboxUnavailable, Stats
from sinas_server.backends.sandbox.native.cgroups import Groups, Slot
from sinas_server.backends.sandbox.native.zygote import Child, SpawnError, Zygote, ZygoteGoneError, readable

PARALLEL_SPAWNS = 3
FIRST_RETRY, LAST_RETRY = 0.05, 5.0
CLOSE_ATTEMPTS = 20
FILL_SECONDS = 0.005


@dataclass(frozen=True)
class PoolSize:
    """How many sandboxes to keep."""

    min_size: int
    max_size: int
    min_idle: int
    acquire_timeout: float


@dataclass(eq=False)
class Member:
    """A sandbox in the pool, with its control group if there is one."""

    child: Child
    slot: Slot | None
    limits: Limits
    zygote: Zygote


def same_shape(one: Limits, other: Limits) -> bool:
    """Whether a sandbox made for `one` serves `other`: what is fixed when the process is made."""
    return (one.memory_bytes, one.cpus, one.processes, one.tmp_bytes) == (
        other.memory_bytes,
        other.cpus,
        other.processes,
        other.tmp_bytes,
    )


class Pool:
    """Hands out sandboxes; owns the zygote, starts it again when it dies."""

    def __init__(
        self,
        size: PoolSize,
        limits: Limits,
        groups: Groups | None,
        zygote: Zygote,
        new_zygote: Callable[[], Coroutine[None, None, Zygote]],
    ) -> None:
        self._size = size
        self._limits = limits
        self._groups = groups
        self._new_zygote = new_zygote
        self.zygote = zygote
        self._idle: deque[Member] = deque()
        self._waiting: deque[asyncio.Future[Member]] = deque()
        self._in_use = 0
        self._starting = 0
        self._ending = 0
        self._problem = ""
        self._closed = False
        self._wake = asyncio.Event()
        self._filling: asyncio.TimerHandle | None = None
        self._outgoing: set[Zygote] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Make the first sandboxes. Raises `SandboxUnavailable`."""
        self.zygote.on_death(self._wake.set)
        self._spawn_task(self._keep_full())
        while len(self._idle) < min(self._size.min_size, self._size.max_size):
            if self._problem:
                raise SandboxUnavailable(self._problem)
            await asyncio.sleep(0.005)

    def stats(self) -> Stats:
        """The state now."""
        return Stats(idle=len(self._idle), in_use=self._in_use, max_size=self._size.max_size)

    def _spawn_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _alive(self) -> int:
        return len(self._idle) + self._in_use + self._starting + self._ending

    async def take(self, limits: Limits) -> Member:
        """A sandbox nobody used. After the acquire timeout raises `SandboxBusy`, or why none can be made."""
        if self._closed:
            raise SandboxUnavailable("the sandbox is closed")
        member = await self._next()
        return member if same_shape(limits, member.limits) else await self._reshape(member, limits)

    async def _next(self) -> Member:
        if self._idle and not self._waiting:
            self._in_use += 1
            self._wake.set()
            return self._idle.popleft()
        waiting: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
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

    def _forget(self, waiting: "asyncio.Future[Member]") -> None:
        """The caller left; a sandbox that came in the same moment goes back."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(waiting)
        if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            self.give_back(waiting.result())

    async def _reshape(self, member: Member, limits: Limits) -> Member:
        """A sandbox with other limits than the pool's, in the place of a pooled one."""
        self.give_back(member)
        self._in_use += 1
        try:
            return await self._make(limits)
        except BaseException as error:
            self._in_use -= 1
            self._wake.set()
            if isinstance(error, SpawnError):
                raise SandboxUnavailable(str(error)) from error
            raise

    def _busy(self) -> str:
        size = self._size
        problem = f"; last problem: {self._problem}" if self._problem else ""
        return (
            f"no sandbox became free within {size.acquire_timeout:g} s: {self._in_use} of {size.max_size} are in use"
            f"{problem}"
        )

    def give_back(self, member: Member) -> None:
        """A used sandbox: killed and freed in the background, a new one is made."""
        self._in_use -= 1
        self._retire(member)

    def _retire(self, member: Member) -> None:
        member.child.kill()
        self._ending += 1
        self._spawn_task(self._bury(member))
        self._wake.set()

    async def _bury(self, member: Member) -> None:
        try:
            await asyncio.shield(member.child.exited)
            await readable(member.child.pidfd)  # when the zygote itself was killed, its sandboxes die a little later
        finally:
            member.child.close()
            if member.slot is not None and self._groups is not None:
                self._groups.give_back(member.slot)
            self._ending -= 1
            self._wake.set()

    def _wanted_idle(self) -> int:
        return max(self._size.min_idle, self._size.min_size - self._in_use)

    def _wanted(self, idle: int) -> int:
        """How many more sandboxes to start now for so many idle ones."""
        size = self._size
        missing = len(self._waiting) + idle - len(self._idle) - self._starting
        return max(0, min(missing, size.max_size - self._alive(), PARALLEL_SPAWNS - self._starting))

    async def _keep_full(self) -> None:
        retry = FIRST_RETRY
        while not self._closed:
            self._wake.clear()
            if not self.zygote.alive:
                try:
                    await self._renew()
                    retry = FIRST_RETRY
                except SandboxUnavailable as error:
                    self._problem = str(error)
                    await asyncio.sleep(retry)
                    retry = min(2 * retry, LAST_RETRY)
                continue
            self._start_for(self._size.min_idle)
            if self._filling is None and self._wanted(self._wanted_idle()):
                # Not in the moment in which the execution that has just ended is being answered.
                self._filling = asyncio.get_running_loop().call_later(FILL_SECONDS, self._fill)
            await self._wake.wait()

    def _fill(self) -> None:
        self._filling = None
        if not self._closed and self.zygote.alive:
            self._start_for(self._wanted_idle())

    def _start_for(self, idle: int) -> None:
        for _ in range(self._wanted(idle)):
            self._starting += 1
            self._spawn_task(self._add())

    async def _renew(self) -> None:
        dead = self.zygote
        await dead.close()
        renewed = await self._new_zygote()
        if self.zygote is dead:
            self._take_up(renewed)
        else:  # switched meanwhile
            await renewed.close()

    def _take_up(self, zygote: Zygote) -> None:
        self.zygote = zygote
        zygote.on_death(self._wake.set)

    async def switch(self, zygote: Zygote) -> None:
        """Make sandboxes of another zygote from now on; the one before ends with the last execution it started."""
        if self._closed:
            await zygote.close()
            raise SandboxUnavailable("the sandbox is closed")
        before = self.zygote
        self._take_up(zygote)
        while self._idle:
            self._retire(self._idle.popleft())
        self._outgoing.add(before)
        self._spawn_task(self._see_off(before))
        self._wake.set()

    async def _see_off(self, zygote: Zygote) -> None:
        await zygote.childless()
        await zygote.close()
        self._outgoing.discard(zygote)

    async def _add(self) -> None:
        member: Member | None = None
        try:
            member = await self._make(self._limits)
            self._problem = ""
        except ZygoteGoneError:
            self._problem = "the zygote died"
        except SpawnError as error:
            self._problem = str(error)
            await asyncio.sleep(FIRST_RETRY)
        finally:
            self._starting -= 1
            self._wake.set()
        if member is None:
            return
        if member.zygote is not self.zygote:  # switched meanwhile
            self._retire(member)
            return
        while self._waiting and not self._closed:
            waiting = self._waiting.popleft()
            if not waiting.done():
                self._in_use += 1
                waiting.set_result(member)
                return
        if self._closed or len(self._idle) >= self._wanted_idle():  # who waited for it has left
            self._retire(member)
            return
        self._idle.append(member)
        member.child.exited.add_done_callback(lambda _: self._lost(member))

    def _lost(self, member: Member) -> None:
        """A sandbox died before use."""
        if member in self._idle:
            self._idle.remove(member)
            self._retire(member)

    async def _make(self, limits: Limits) -> Member:
        zygote = self.zygote
        child = await zygote.spawn(limits)
        if self._groups is None:
            return Member(child, None, limits, zygote)
        try:
            slot = await self._confine(self._groups, child, limits)
        except BaseException as error:
            child.kill()
            child.close()
            if isinstance(error, OSError):
                raise SpawnError(f"the control group refused: {error}") from error
            raise
        return Member(child, slot, limits, zygote)

    async def _confine(self, groups: Groups, child: Child, limits: Limits) -> Slot:
        """Put a sandbox into a control group. Raises `OSError`."""
        slot = groups.take(limits)
        # The kernel lets other processors settle first: milliseconds of waiting that are not for the event loop.
        moving = asyncio.ensure_future(asyncio.to_thread(slot.add, child.pid))
        try:
            await asyncio.shield(moving)
        except BaseException:
            await asyncio.wait([moving])
            slot.remove()
            raise
        return slot

    async def close(self) -> None:
        """Kill everything and free it."""
        self._closed = True
        self._wake.set()
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(SandboxUnavailable("the sandbox is closed"))
        while self._idle:
            self._retire(self._idle.popleft())
        for zygote in (self.zygote, *self._outgoing):
            await zygote.close()
        while self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
        await self.zygote.close()  # one that was being started meanwhile
        for _ in range(CLOSE_ATTEMPTS):
            if self._groups is None or self._groups.close():
                return
            await asyncio.sleep(FIRST_RETRY)

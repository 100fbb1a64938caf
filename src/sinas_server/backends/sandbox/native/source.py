"""Where the pool gets native sandboxes from: a zygote that is started again when it dies, and control groups."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from sinas_server.backends.sandbox import Limits, SandboxUnavailable
from sinas_server.backends.sandbox.member import SpawnError
from sinas_server.backends.sandbox.native.cgroups import Groups, Slot
from sinas_server.backends.sandbox.native.zygote import Child, Zygote, readable
from sinas_server.backends.sandbox.pool import FIRST_RETRY

CLOSE_ATTEMPTS = 20


@dataclass(eq=False)
class NativeMember:
    """A sandbox, with its control group if there is one; used once."""

    child: Child
    slot: Slot | None
    limits: Limits
    groups: Groups | None
    packages: str | None
    executions: int = 0
    killed: bool = False

    @property
    def name(self) -> str:
        """Tells it from the others of this worker."""
        return f"sandbox-{self.child.pid}"

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call when it has died by itself."""
        self.child.exited.add_done_callback(lambda _: callback())

    def kill(self) -> None:
        """Kill it with everything it started."""
        self.killed = True
        self.child.kill()

    async def bury(self) -> None:
        """Wait for its end and free its control group."""
        try:
            await asyncio.shield(self.child.exited)
            await readable(self.child.pidfd)  # when the zygote itself was killed, its sandboxes die a little later
        finally:
            self.child.close()
            if self.slot is not None and self.groups is not None:
                self.groups.give_back(self.slot)

    async def renewed(self) -> bool:
        """It is used once."""
        return False


class NativeSource:
    """One zygote and what it forks."""

    def __init__(
        self, zygote: Zygote, new_zygote: Callable[[], Coroutine[None, None, Zygote]], groups: Groups | None
    ) -> None:
        self.zygote = zygote
        self._new_zygote = new_zygote
        self._groups = groups
        self._on_death: Callable[[], None] = lambda: None
        self._closed = False
        self._outgoing: dict[Zygote, asyncio.Task[None]] = {}

    def on_death(self, callback: Callable[[], None]) -> None:
        """Call when a zygote has died by itself."""
        self._on_death = callback
        self.zygote.on_death(callback)

    @property
    def broken(self) -> bool:
        """Whether the zygote is dead."""
        return not self.zygote.alive

    async def repair(self) -> None:
        """Start another zygote. Raises `SandboxUnavailable`."""
        dead = self.zygote
        await dead.close()
        renewed = await self._new_zygote()
        if self.zygote is dead:
            self._take_up(renewed)
        else:  # switched meanwhile
            await renewed.close()

    def _take_up(self, zygote: Zygote) -> None:
        self.zygote = zygote
        zygote.on_death(self._on_death)

    async def switch(self, zygote: Zygote) -> None:
        """Make sandboxes of another zygote from now on; the one before ends with the last execution it started.

        Raises `SandboxUnavailable` when closed.
        """
        if self._closed:
            await zygote.close()
            raise SandboxUnavailable("the sandbox is closed")
        before = self.zygote
        self._take_up(zygote)
        self._outgoing[before] = asyncio.create_task(self._see_off(before))

    async def _see_off(self, zygote: Zygote) -> None:
        await zygote.childless()
        await zygote.close()
        del self._outgoing[zygote]

    async def make(self, limits: Limits) -> NativeMember:
        """A confined process that waits. Raises `SpawnError`."""
        zygote = self.zygote
        child = await zygote.spawn(limits)
        if self._groups is None:
            return NativeMember(child, None, limits, None, zygote.packages)
        try:
            slot = await self._confine(self._groups, child, limits)
        except BaseException as error:
            child.kill()
            child.close()
            if isinstance(error, OSError):
                raise SpawnError(f"the control group refused: {error}") from error
            raise
        return NativeMember(child, slot, limits, self._groups, zygote.packages)

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
        """Kill the zygotes, and with them all they forked."""
        self._closed = True
        for zygote in (self.zygote, *self._outgoing):
            await zygote.close()
        await asyncio.gather(*self._outgoing.values())

    async def free_groups(self) -> None:
        """Remove the control groups, once what was in them is gone."""
        for _ in range(CLOSE_ATTEMPTS):
            if self._groups is None or self._groups.close():
                return
            await asyncio.sleep(FIRST_RETRY)

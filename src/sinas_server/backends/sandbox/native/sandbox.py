"""The native driver: namespaces, Landlock, seccomp and control groups, without Docker."""

import asyncio
import shutil
from dataclasses import replace

from sinas_server.backends.sandbox import Level, OnOutput, Outcome, PackageSet, SandboxUnavailable, Stats, Task
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.egress import EgressProxy, make_policy
from sinas_server.backends.sandbox.guest.zygote import Config
from sinas_server.backends.sandbox.native.cgroups import Groups
from sinas_server.backends.sandbox.native.execution import Execution
from sinas_server.backends.sandbox.native.levels import Ground, start_zygote, survey, with_packages
from sinas_server.backends.sandbox.native.source import NativeMember, NativeSource
from sinas_server.backends.sandbox.native.watchdog import Watchdog
from sinas_server.backends.sandbox.native.zygote import Zygote
from sinas_server.backends.sandbox.outcome import Evidence, conclude
from sinas_server.backends.sandbox.pool import Pool, PoolSize


class NativeSandbox:
    """A `Sandbox` of this machine's kernel. Start it in the process' main thread."""

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        self._policy = make_policy(config)
        self._ground: Ground | None = None
        self._guest: Config | None = None
        self._packages: str | None = None
        """What the zygotes of now are started with, and the hash of the set of packages in that."""
        self._switching = asyncio.Lock()
        self._source: NativeSource | None = None
        self._pool: Pool[NativeMember] | None = None
        self._watchdog = Watchdog()

    async def start(self) -> None:
        """Find the isolation level and fill the pool. Raises `SandboxUnavailable`."""
        config = self._config
        self._ground, zygote = await survey(config)
        self._guest = self._ground.config
        size = PoolSize(config.min_size, config.max_size, config.min_idle, config.acquire_timeout)
        self._source = NativeSource(zygote, self._new_zygote, self._ground.groups)
        self._pool = Pool(size, config.limits, self._source)
        self._source.on_death(self._pool.wake)
        try:
            await self._pool.start()
        except BaseException:
            await self.close()
            raise

    async def _new_zygote(self) -> Zygote:
        if self._ground is None or self._guest is None:
            raise SandboxUnavailable("the sandbox was not started")
        zygote = await start_zygote(self._ground.interpreter, self._guest)
        zygote.packages = self._packages
        return zygote

    async def use(self, packages: PackageSet | None) -> None:
        """Run from now on with these packages. Raises `SandboxUnavailable`, and then nothing has changed."""
        if self._ground is None or self._pool is None or self._source is None:
            raise SandboxUnavailable("the sandbox was not started")
        async with self._switching:
            zygote = await self._zygote_with(self._ground, packages)
            self._packages = zygote.packages = packages.hash if packages else None
            await self._source.switch(zygote)
            self._pool.outdate()

    def packages_in_use(self) -> frozenset[str]:
        """The hashes of the sets that what is alive was started with."""
        return frozenset() if self._pool is None else self._pool.packages_in_use()

    async def _zygote_with(self, ground: Ground, packages: PackageSet | None) -> Zygote:
        if packages is None:
            return await self._zygote_of(ground, self._config)
        wanted = replace(self._config, packages=(*self._config.packages, packages.path))
        try:
            return await self._zygote_of(ground, replace(wanted, preload=(*wanted.preload, *packages.preload)))
        except SandboxUnavailable:
            # A package that ends or hangs the process that imports it must not take all functions down.
            return await self._zygote_of(ground, wanted)

    async def _zygote_of(self, ground: Ground, config: SandboxConfig) -> Zygote:
        guest = with_packages(ground, config)
        zygote = await start_zygote(ground.interpreter, guest)
        self._guest = guest
        return zygote

    @property
    def level(self) -> Level:
        """How functions are isolated here. Raises `SandboxUnavailable` before `start`."""
        if self._ground is None:
            raise SandboxUnavailable("the sandbox was not started")
        return self._ground.level

    @property
    def preloaded(self) -> dict[str, str | None]:
        """Each package that was to be preloaded: None, or why it is not."""
        return {} if self._source is None else self._source.zygote.started.preload

    @property
    def groups(self) -> Groups | None:
        """The control groups in use, if any."""
        return None if self._ground is None else self._ground.groups

    @property
    def zygote_pid(self) -> int:
        """The process on which all sandboxes hang. Raises `SandboxUnavailable` before `start`."""
        if self._source is None:
            raise SandboxUnavailable("the sandbox was not started")
        return self._source.zygote.pid

    async def run(self, task: Task, on_output: OnOutput | None = None) -> Outcome:
        """Run one task in a fresh sandbox. Raises `SandboxBusy` and, when closed, `SandboxUnavailable`."""
        if self._pool is None:
            raise SandboxUnavailable("the sandbox was not started")
        member = await self._pool.take(task.limits)
        try:
            return conclude(task, await self._execute(member, task, on_output))
        finally:
            self._pool.give_back(member)

    async def _execute(self, member: NativeMember, task: Task, on_output: OnOutput | None) -> Evidence:
        child = member.child
        member.executions += 1
        execution = Execution(child, task, on_output)
        proxy = EgressProxy(self._policy, task.egress)
        if child.listener is not None:
            proxy.listen(child.listener)
        watched = self._watchdog.watch(execution, child.pid, task.limits) if member.slot is None else None
        try:
            seen = await execution.run()
        finally:
            if watched is not None:
                self._watchdog.release(watched)
            proxy.close()
        if member.slot is not None:
            seen.out_of_memory = member.slot.out_of_memory()
        if member.killed and seen.exit is not None:
            seen.exit = replace(seen.exit, restarted=True)
        return seen

    def stats(self) -> Stats:
        """The pool now."""
        return Stats(self._config.max_size, 1) if self._pool is None else self._pool.stats()

    async def scale(self, target: int) -> int:
        """Keep so many sandboxes."""
        return 0 if self._pool is None else await self._pool.scale(target)

    async def reload(self) -> int:
        """Make the idle sandboxes anew."""
        return 0 if self._pool is None else await self._pool.replace()

    async def has(self, name: str) -> bool:
        """Whether there is a sandbox of this name."""
        return self._pool is not None and self._pool.find(name) is not None

    async def restart(self, name: str) -> bool:
        """Make the sandbox of this name anew; what runs in it ends. Raises `SandboxUnavailable`."""
        member = None if self._pool is None else self._pool.find(name)
        if self._pool is None or member is None:
            raise SandboxUnavailable(f"there is no sandbox {name}")
        self._pool.restart(member)
        return True

    async def close(self) -> None:
        """Kill what runs and free everything."""
        await self._watchdog.close()
        if self._pool is not None:
            await self._pool.close()
        if self._source is not None:
            await self._source.free_groups()
        if self._ground is not None and self._ground.config["scratch"]:
            await asyncio.to_thread(shutil.rmtree, self._ground.config["scratch"], ignore_errors=True)


def open_sandbox(config: SandboxConfig) -> NativeSandbox:
    """A sandbox to `start()` in the process that will use it. Raises `ValueError` for an unusable allow-list."""
    return NativeSandbox(config)

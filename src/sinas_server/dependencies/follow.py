"""What a function worker does about packages: install the set in force and hand it to what runs functions."""

import asyncio
from collections.abc import Sequence
from time import monotonic
from uuid import UUID

import structlog

from sinas_server.backends.packages import PackageError
from sinas_server.backends.packages.directories import PackageDirectories
from sinas_server.backends.sandbox import PackageSet, SandboxUnavailable, UsesPackages
from sinas_server.dependencies.requirement import approved_names
from sinas_server.dependencies.sets import note_ready, set_in_force, try_again
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime

log = structlog.get_logger()
LOOK_SECONDS = 2.0
RETRY_SECONDS = 60.0
"""How long a set that works elsewhere, but not here, is left alone."""


class PackageFollower:
    """Keeps the drivers of one process at the set in force."""

    def __init__(self, directories: PackageDirectories, drivers: Sequence[UsesPackages]) -> None:
        self.settled = asyncio.Event()
        """Set after the first step: functions find their packages, or the log says why not."""
        self._directories = directories
        self._drivers = drivers
        self._current: tuple[UUID, int] | None = None
        """Which set is used, and the attempt that made its lock: it may be made anew."""
        self._used: PackageSet | None = None
        self._not_before = 0.0

    @property
    def loop(self) -> Loop:
        """What the worker runs for ever."""
        return Loop("packages", LOOK_SECONDS, self.step)

    async def step(self, runtime: Runtime) -> None:
        """Use the set in force if another one is used so far."""
        try:
            row = await set_in_force(runtime.database)
            if row is not None and (row.id, row.attempt) != self._current and monotonic() >= self._not_before:
                await self._follow(runtime, row)
            await self._tidy()
        finally:
            self.settled.set()

    async def _follow(self, runtime: Runtime, row: PackageSetRow) -> None:
        try:
            wanted = await self._directories.get(row.lock, approved_names(row.requirements)) if row.lock else None
            if wanted != self._used:
                for driver in self._drivers:
                    await driver.use(wanted)
        except (PackageError, SandboxUnavailable, OSError) as error:
            log.warning("a set of packages cannot be used here", set=str(row.id), reason=str(error))
            if row.ready_at is None:  # nobody uses it yet: it is made anew, and the one before stays in force
                await try_again(runtime, row, str(error))
            else:
                self._not_before = monotonic() + RETRY_SECONDS
            return
        self._current, self._used = (row.id, row.attempt), wanted
        await note_ready(runtime, row.id)
        log.info("packages in use", set=str(row.id), requirements=row.requirements)

    async def _tidy(self) -> None:
        """Let the sets go that nothing here uses any more."""
        in_use = {each for driver in self._drivers for each in driver.packages_in_use()}
        await self._directories.release(in_use | ({self._used.hash} if self._used else set()))

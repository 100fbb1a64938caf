"""Memory, CPU and process limits of a process tree where no control group counts them: look, add up, kill."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sinas_server.backends.sandbox import Limits
from sinas_server.backends.sandbox.native.execution import Execution

INTERVAL = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[int]:
    """The host pids of a process and all below it; orphans of a PID namespace hang on its first process."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def resident(pid: int) -> int:
    """Resident bytes, shared pages included: cheap, and never less than the proportional size."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def proportional(pid: int) -> int:
    """Bytes of memory with shared pages divided among their users."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident(pid)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS
    except (OSError, IndexError):
        return 0.0


@dataclass(eq=False)
class _Watched:
    execution: Execution
    pid: int
    limits: Limits
    cpu_before: float


class Watchdog:
    """Watches the running executions."""

    def __init__(self) -> None:
        self._watched: set[_Watched] = set()
        self._task: asyncio.Task[None] | None = None

    def watch(self, execution: Execution, pid: int, limits: Limits) -> "_Watched":
        """Enforce the limits on the tree of `pid` until `release`."""
        watched = _Watched(execution, pid, limits, cpu_seconds(pid))
        self._watched.add(watched)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        return watched

    def release(self, watched: "_Watched") -> None:
        """Stop watching."""
        self._watched.discard(watched)

    async def _look(self) -> None:
        while self._watched:
            await asyncio.sleep(INTERVAL)
            for watched in list(self._watched):
                _check(watched)

    async def close(self) -> None:
        """Stop."""
        self._watched.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _check(watched: _Watched) -> None:
    pids = list(tree(watched.pid))
    limit = watched.limits.memory_bytes
    if sum(map(resident, pids)) > limit and sum(map(proportional, pids)) > limit:
        watched.execution.seen.out_of_memory = True
        watched.execution.stop()
        return
    allowed = watched.limits.cpus * watched.limits.wall_seconds
    if sum(map(cpu_seconds, pids)) - watched.cpu_before > allowed:
        watched.execution.seen.out_of_cpu = True
        watched.execution.stop()

"""What this machine and this process use, as Linux tells in /proc and in the control group."""

import asyncio
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number of this size where there is no limit."""
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class HostUse:
    """How busy and how full the machine is."""

    cpus: int
    cpu_percent: float
    """Of all processors together, over the last moment."""
    memory_total: int
    """Bytes, as are the others."""
    memory_used: int
    disk_total: int
    disk_used: int

    @property
    def memory_percent(self) -> float:
        """How full the memory is."""
        return _percent(self.memory_used, self.memory_total)

    @property
    def disk_percent(self) -> float:
        """How full the disk is."""
        return _percent(self.disk_used, self.disk_total)


@dataclass(frozen=True)
class ProcessUse:
    """What one process uses."""

    cpu_percent: float
    """Of one processor, since the sample before."""
    memory_bytes: int
    """Its resident memory; pages that it shares with its siblings count in each."""
    memory_limit: int | None
    """Bytes that its control group may use; none for no limit."""


async def read_host(directory: Path) -> HostUse:
    """The use of this machine, and of the disk that holds `directory`."""
    busy, total = _processor_times()
    await asyncio.sleep(SAMPLE_SECONDS)
    later_busy, later_total = _processor_times()
    memory = {name: int(rest.split()[0]) << 10 for name, _, rest in _lines(PROC / "meminfo")}
    disk = shutil.disk_usage(_existing(directory))
    return HostUse(
        cpus=os.cpu_count() or 1,
        cpu_percent=_percent(later_busy - busy, later_total - total),
        memory_total=memory["MemTotal"],
        memory_used=memory["MemTotal"] - memory["MemAvailable"],
        disk_total=disk.total,
        disk_used=disk.total - disk.free,
    )


class ProcessSampler:
    """Measures this process from one reading to the next."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._spent = time.process_time()

    def read(self) -> ProcessUse:
        """What it used since the last reading."""
        at, spent = time.monotonic(), time.process_time()
        share = _percent(spent - self._spent, at - self._at)
        self._at, self._spent = at, spent
        pages = int((PROC / "self/statm").read_text().split()[1])
        return ProcessUse(share, pages * os.sysconf("SC_PAGE_SIZE"), _memory_limit())


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 1) if whole > 0 else 0.0


def _lines(path: Path) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in path.read_text().splitlines() if ":" in line]


def _processor_times() -> tuple[int, int]:
    """Busy and all ticks of all processors since the start."""
    user, nice, system, idle, waiting, *rest = (
        int(ticks) for ticks in (PROC / "stat").read_text().splitlines()[0].split()[1:9]
    )
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + waiting


def _memory_limit() -> int | None:
    for path in GROUP_LIMITS:
        with suppress(OSError, ValueError):  # not this version, or `max`
            limit = int(path.read_text())
            return limit if limit < NO_LIMIT else None
    return None


def _existing(directory: Path) -> Path:
    """The directory, or what will hold it."""
    return next(path for path in (directory, *directory.parents) if path.exists())

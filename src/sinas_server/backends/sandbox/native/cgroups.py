"""Control groups, version 1 or 2: memory, CPU and process limits that hold for a whole process tree.

Groups are reused: making one costs more than running a short function. A group's directory carries the id and start
time of the process that made it, so that those of dead processes can be told and removed.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sinas_server.backends.sandbox import Limits

ROOT = Path("/sys/fs/cgroup")
OWN_NAME = "sinas-sandbox"
CPU_PERIOD = 100_000
CONTROLLERS = ("memory", "pids", "cpu")


def _write(path: Path, value: int | str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _counter(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _start_time(pid: int) -> str:
    """When a process started, in ticks since boot: with its id it names it for good. Empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@dataclass
class Slot:
    """One control group, used by one execution at a time."""

    directories: list[Path]
    version: int
    kills_before: int = 0
    shape: tuple[int, float, int] | None = field(default=None)

    def prepare(self, limits: Limits) -> None:
        """Set the limits. Raises `OSError`."""
        shape = (limits.memory_bytes, limits.cpus, limits.processes)
        if shape != self.shape:
            for path, value in self._settings(limits):
                _write(path, value)
            self.shape = shape
        self.kills_before = self._kills()

    def _settings(self, limits: Limits) -> Iterator[tuple[Path, int | str]]:
        quota = int(limits.cpus * CPU_PERIOD)
        if self.version == 1:
            memory, pids, cpu = self.directories
            yield memory / "memory.limit_in_bytes", limits.memory_bytes
            yield memory / "memory.swappiness", 0
            yield pids / "pids.max", limits.processes
            yield cpu / "cpu.cfs_period_us", CPU_PERIOD
            yield cpu / "cpu.cfs_quota_us", quota
            return
        group = self.directories[0]
        yield group / "memory.max", limits.memory_bytes
        yield group / "memory.swap.max", 0
        yield group / "memory.oom.group", 1
        yield group / "pids.max", limits.processes
        yield group / "cpu.max", f"{quota} {CPU_PERIOD}"

    def add(self, pid: int) -> None:
        """Move a process in. Raises `OSError`."""
        for directory in self.directories:
            _write(directory / "cgroup.procs", pid)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process for memory since `prepare`."""
        return self._kills() > self.kills_before

    def _kills(self) -> int:
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _counter(self.directories[0] / name, "oom_kill")

    def remove(self) -> None:
        """Remove the group; left for the next sweep if a process is still in it."""
        for directory in self.directories:
            with contextlib.suppress(OSError):
                directory.rmdir()


class Groups:
    """The control groups of this process."""

    def __init__(self, parents: list[Path], version: int, sweep: Iterable[Path] = ()) -> None:
        """Groups below `parents`; those of dead processes are removed there and below `sweep`."""
        self._parents = parents
        self._version = version
        self._own = self.own_name()
        self._free: list[Slot] = []
        self._made = 0
        for each in (*parents, *sweep):
            _sweep(each)
        for parent in parents:
            own = parent / self._own
            own.mkdir(parents=True, exist_ok=True)
            if version == 2:
                _delegate(parent)
                _delegate(own)

    @staticmethod
    def own_name() -> str:
        """The name of this process' groups."""
        return f"{os.getpid()}-{_start_time(os.getpid())}"

    def own_directories(self) -> list[Path]:
        """Where the groups of this process are, one directory per hierarchy."""
        return [parent / self._own for parent in self._parents]

    def take(self, limits: Limits) -> Slot:
        """A group with these limits, for one execution. Raises `OSError`."""
        slot = self._free.pop() if self._free else self._make()
        try:
            slot.prepare(limits)
        except OSError:
            slot.remove()
            raise
        return slot

    def _make(self) -> Slot:
        self._made += 1
        directories = [parent / self._own / str(self._made) for parent in self._parents]
        for directory in directories:
            directory.mkdir(exist_ok=True)
        return Slot(directories, self._version)

    def give_back(self, slot: Slot) -> None:
        """Keep an empty group for the next execution."""
        self._free.append(slot)

    def close(self) -> bool:
        """Remove the groups of this process; False while one is still busy."""
        self._free.clear()
        own = self.own_directories()
        for group in own:
            remove_tree(group)
        return not any(group.exists() for group in own)


def _sweep(parent: Path) -> None:
    """Remove the groups of dead processes."""
    for group in parent.glob("*-*"):
        pid, _, started = group.name.partition("-")
        if pid.isdigit() and _start_time(int(pid)) != started:
            remove_tree(group)


def remove_tree(group: Path) -> None:
    """Remove a group and those below it, as far as they are empty."""
    for below in group.iterdir() if group.is_dir() else ():
        if below.is_dir():
            remove_tree(below)
    with contextlib.suppress(OSError):
        group.rmdir()


def _delegate(group: Path) -> None:
    """Let the groups below have the controllers. Raises `OSError`."""
    _write(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in CONTROLLERS))


def _own_paths() -> dict[str, str]:
    """The group this process is in, by controller; the empty name is version 2."""
    paths: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    return paths


def open_groups(parent: Path | None) -> Groups:
    """The control groups this process may make, below `parent` (version 2) if given. Raises `OSError`."""
    own = _own_paths()
    if parent is None and (ROOT / "memory").is_dir():
        parents = []
        for name in CONTROLLERS:
            below = ROOT / name / own.get(name, "/").lstrip("/")
            parents.append((below if below.is_dir() else ROOT / name) / OWN_NAME)
        # An earlier process may have been in another group: a login session, a job of a service.
        elsewhere = (found for name in CONTROLLERS for found in (ROOT / name).rglob(OWN_NAME))
        return Groups(parents, 1, elsewhere)
    if parent is not None:
        return Groups([parent / OWN_NAME], 2)
    return _open_version_2(own.get("", "/"))


def _open_version_2(own: str) -> Groups:
    """Below the root group as root; else below our own group if it is delegated to us."""
    if os.geteuid() == 0 and os.access(ROOT / "cgroup.subtree_control", os.W_OK):
        with contextlib.suppress(OSError):
            _delegate(ROOT)
            return Groups([ROOT / OWN_NAME], 2)
    group = ROOT / own.lstrip("/")
    # A group with processes cannot share out controllers, so the platform itself moves one down first.
    leaf = group / "sinas-platform"
    leaf.mkdir(exist_ok=True)
    for pid in (group / "cgroup.procs").read_text().split():
        _write(leaf / "cgroup.procs", pid)
    _delegate(group)
    return Groups([group / OWN_NAME], 2)

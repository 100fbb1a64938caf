"""Running Python of users: the port that every driver implements.

Drivers for untrusted code (native namespaces, Docker) give each task fresh, isolated state; what must hold inside is
written in `docs/architecture/sandbox.md`, and one contract test suite runs on each of them. The driver for trusted
code (`shared`) runs tasks in threads of long-lived processes, where they may also ask things of a `Host`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol

from pydantic import JsonValue

Egress = Literal["public", "list", "none"]
OnOutput = Callable[[Literal["stdout", "stderr"], str], None]


class Ending(StrEnum):
    """How an execution ended."""

    OK = "ok"
    ERROR = "error"  # the user's code raised, or returned something that is not JSON
    TIMEOUT = "timeout"  # the wall-clock limit was hit
    MEMORY = "memory"  # the memory limit was hit
    OUTPUT_TOO_LARGE = "output_too_large"
    DIED = "died"  # the process vanished: killed, crashed or out of CPU time


@dataclass(frozen=True)
class Limits:
    """What one execution may use; the whole process tree counts together."""

    wall_seconds: float = 300.0
    memory_bytes: int = 512 << 20
    cpus: float = 1.0
    processes: int = 32
    tmp_bytes: int = 100 << 20
    result_bytes: int = 6 << 20
    log_bytes: int = 1 << 20


class HostRefusalError(Exception):
    """What is asked for cannot be given; the code is told the message, of input as a `TimeoutError`."""


class Host(Protocol):
    """What trusted code may ask of the platform while it runs. What else these raise ends the task with that error."""

    async def get_secret(self, name: str) -> str | None:
        """The value of a secret; None if there is none that the code may use. Raises `HostRefusalError`."""
        ...

    async def list_secrets(self) -> list[str]:
        """The names that have a value."""
        ...

    async def get_input(self, prompt: str) -> str:
        """What a person answers, however long it takes: the time limit stands still. Raises `HostRefusalError`."""
        ...


@dataclass(frozen=True)
class Task:
    """One execution: the code and everything it is given."""

    code: str
    entry_points: tuple[str, ...]
    """Names of the function to call, tried in this order: `handler`, then the legacy name.

    Without any the code is a script: its input is `{"variables": {name: value}, "files": {relative path: base64}}`,
    and its result is the value of its last expression, or else of its variable `result`.
    """
    input: JsonValue
    context: Mapping[str, JsonValue]
    limits: Limits = field(default_factory=Limits)
    egress: Egress = "public"
    filename: str = "function.py"
    """Shown in tracebacks."""
    env: Mapping[str, str] = field(default_factory=dict)
    host: Host | None = None
    """Of trusted code; in a sandbox nobody can be asked."""


@dataclass(frozen=True)
class Outcome:
    """What came of a task."""

    ending: Ending
    result: JsonValue = None
    """Storable: what `kit.json.parse` accepts."""
    error: str | None = None
    """One line: the exception with its message, or which limit was hit and its value."""
    traceback: str | None = None
    """The Python traceback, starting at the user's own file."""
    stdout: str = ""
    stderr: str = ""
    entry_point: str | None = None
    """Which of `entry_points` was called; the caller logs a deprecation for the legacy one."""


@dataclass(frozen=True)
class MemberStats:
    """One sandbox of a pool."""

    name: str
    executions: int
    age_seconds: float


@dataclass(frozen=True)
class Stats:
    """The pool at this moment."""

    max_size: int
    max_executions: int
    """After so many a sandbox is replaced."""
    idle_members: tuple[MemberStats, ...] = ()
    in_use_members: tuple[MemberStats, ...] = ()

    @property
    def idle(self) -> int:
        """How many wait."""
        return len(self.idle_members)

    @property
    def in_use(self) -> int:
        """How many run something."""
        return len(self.in_use_members)

    @property
    def total(self) -> int:
        """Both together."""
        return self.idle + self.in_use


@dataclass(frozen=True)
class Level:
    """What isolates functions here."""

    name: str
    reason: str
    """What it means, in one sentence."""
    missing: tuple[str, ...] = ()
    """What this machine does not give, and what follows from it."""


@dataclass(frozen=True)
class PackageSet:
    """Installed packages that functions may import: one immutable directory."""

    hash: str
    """Of what is in it: two sets with the same hash hold the same files."""
    path: Path
    """What belongs on `sys.path`; every driver shows it read-only."""
    preload: tuple[str, ...] = ()
    """Modules worth importing once for all sandboxes. One that fails to, or leaves threads running, is left out."""


class SandboxUnavailable(Exception):  # noqa: N818 - a state of the machine, not a mistake
    """No sandbox can be made on this machine; the message says why and what to do."""


class SandboxLost(Exception):  # noqa: N818 - what happened to others too, not a mistake
    """The process that ran the task ended with all the tasks in it, perhaps because of another one."""


class SandboxBusy(Exception):  # noqa: N818 - a state, not a mistake
    """Every sandbox was in use for the whole acquire timeout; the message says how many. Waiting on will help."""


class UsesPackages(Protocol):
    """What runs functions with a set of packages."""

    async def use(self, packages: PackageSet | None) -> None:
        """Run from now on with these packages, None for none; what runs goes on with those it started with.

        Also called with the set in use, to have every waiting sandbox made anew. Raises `SandboxUnavailable` when
        that fails, and then nothing has changed.
        """
        ...

    def packages_in_use(self) -> frozenset[str]:
        """The hashes of the sets that what is alive was started with; their directories must stay."""
        ...


class Restarts(Protocol):
    """What can restart something by its name."""

    async def has(self, name: str) -> bool:
        """Whether it can restart what has this name. Raises `SandboxUnavailable`."""
        ...

    async def restart(self, name: str) -> bool:
        """Restart it; what runs in a sandbox ends. False if the restart was begun and is not over yet.

        Raises `SandboxUnavailable`, also if there is nothing of this name.
        """
        ...


class Sandbox(UsesPackages, Restarts, Protocol):
    """Runs tasks. One object per worker process."""

    async def start(self) -> None:
        """Prepare the pool. Raises `SandboxUnavailable`."""
        ...

    async def run(self, task: Task, on_output: OnOutput | None = None) -> Outcome:
        """Run one task, untrusted code in a sandbox never used before. Raises nothing for what the task does.

        Raises `SandboxBusy`, `SandboxUnavailable`, and `SandboxLost` where tasks share a process. Cancelling the
        awaiting task kills the execution and everything it started. `on_output` is called with decoded text as it is
        printed.
        """
        ...

    @property
    def level(self) -> Level:
        """How functions are isolated here. Raises `SandboxUnavailable` before `start`."""
        ...

    def stats(self) -> Stats:
        """The state of the pool."""
        ...

    async def scale(self, target: int) -> int:
        """Keep `target` sandboxes, idle and in use, at most `max_size`, and never fewer than the pool must keep idle.

        Executions are not interrupted. Gives how many there are now; some may still be missing where making them
        failed or took longer than the acquire timeout.
        """
        ...

    async def reload(self) -> int:
        """Make every idle sandbox anew; those in use follow when they are given back. Gives how many were renewed."""
        ...

    async def close(self) -> None:
        """Kill what runs and free everything."""
        ...

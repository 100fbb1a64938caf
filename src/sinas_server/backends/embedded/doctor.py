"""What the embedded stack needs of the machine, checked one by one, each with advice."""

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sinas_server.backends.embedded import postgres, valkey
from sinas_server.backends.embedded.datadir import DataDir
from sinas_server.backends.embedded.process import EmbeddedError
from sinas_server.backends.embedded.server import launched
from sinas_server.backends.embedded.supervisor import bind_api_socket

LEAST_DISK = 1 << 30  # bytes
LEAST_MEMORY = 512 << 20  # bytes


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; `advice` is empty when it went well."""

    name: str
    ok: bool
    detail: str
    advice: str = ""


def diagnose(data: DataDir, host: str, port: int) -> list[Finding]:
    """All findings about running the embedded stack in `data` with its API on `host` and `port`; changes nothing."""
    holder = data.holder()
    return [
        _python(),
        _platform(),
        _runs("PostgreSQL", lambda: [str(postgres.binary("postgres"))]),
        _runs("Valkey", lambda: [str(valkey.binary())]),
        _user_namespaces(),
        _data_directory(data, holder),
        _port(host, port, holder),
        _disk(data),
        _memory(),
    ]


def _finding(name: str, good: bool, detail: str, advice: str) -> Finding:
    return Finding(name, good, detail, "" if good else advice)


def _python() -> Finding:
    good = sys.version_info[:2] >= (3, 11)
    return _finding("Python", good, platform.python_version(), "Install Python 3.11 or later.")


def _platform() -> Finding:
    system, machine = platform.system(), platform.machine()
    good = system == "Linux" and machine in {"x86_64", "aarch64"}
    advice = "The embedded stack runs on Linux (x86_64, aarch64); elsewhere run Sinas in a container."
    return _finding("Platform", good, f"{system} {platform.release()} {machine}", advice)


def _output(command: Sequence[str]) -> tuple[bool, str]:
    """Whether a command succeeds, and what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603 - ours
    except (OSError, subprocess.SubprocessError) as error:
        return False, str(error)
    return done.returncode == 0, (done.stdout + done.stderr).strip()


def _runs(name: str, program: Callable[[], list[str]]) -> Finding:
    try:
        good, detail = _output([*program(), "--version"])
    except EmbeddedError as error:
        good, detail = False, str(error)
    advice = "Install again (`make sync`), or give your own server with DATABASE_URL and REDIS_URL."
    return _finding(f"Bundled {name}", good, detail, advice)


def _user_namespaces() -> Finding:
    good, detail = _output(launched(["/bin/true"], signal.SIGKILL, userns=True))
    advice = (
        "Permit them: `sysctl user.max_user_namespaces=15000`, on Ubuntu also "
        "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`; in a container run it with a seccomp profile that "
        "permits unshare. Functions run in them, and so does PostgreSQL when you are root."
    )
    return _finding("User namespaces", good, detail or "available", advice)


def _data_directory(data: DataDir, holder: int | None) -> Finding:
    if holder is not None:
        return Finding("Data directory", ok=True, detail=f"{data.root}, in use by process {holder}")
    nearest = _nearest(data.root)
    good = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    advice = f"{nearest} is not a directory that you may write to; choose another with SINAS_DATA_DIR."
    return _finding("Data directory", good, str(data.root), advice)


def _port(host: str, port: int, holder: int | None) -> Finding:
    name = f"Port {port}"
    if holder is not None:
        return Finding(name, ok=True, detail="not checked: `sinas up` is running")
    try:
        bind_api_socket(host, port).close()
    except EmbeddedError as error:
        return Finding(name, ok=False, detail="not free", advice=str(error))
    return Finding(name, ok=True, detail=f"free on {host}")


def _disk(data: DataDir) -> Finding:
    free = shutil.disk_usage(_nearest(data.root)).free
    return _finding(
        "Disk space", free >= LEAST_DISK, f"{free >> 20} MB free", "Leave 1 GB free for the data directory."
    )


def _memory() -> Finding:
    available = _memory_available()
    detail = f"{available >> 20} MB available"
    return _finding("Memory", available >= LEAST_MEMORY, detail, "Leave 512 MB of memory available.")


def _memory_available() -> int:
    """Bytes that the machine and the container (cgroup v2) still have to give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:  # not in a container with cgroup v2
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def _nearest(path: Path) -> Path:
    """The path itself or its nearest ancestor that exists."""
    return path if path.exists() else _nearest(path.parent)

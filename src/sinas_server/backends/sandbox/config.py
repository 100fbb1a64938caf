"""How to open a native sandbox."""

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sinas_server.backends.net import resolve
from sinas_server.backends.sandbox import Limits
from sinas_server.kit.hosts import Address
from sinas_server.settings import Settings

Resolve = Callable[[str, int], Awaitable[list[Address]]]

GUEST_PLATFORM_HOST = "host.docker.internal"
GUEST_PLATFORM_PORT = 8000
"""Where functions find the platform's API, whatever its real port: existing packages call it there."""


@dataclass(frozen=True)
class SandboxConfig:
    """Everything a driver needs to know; the defaults fit an embedded installation."""

    python: Path = Path(sys.executable)
    """The interpreter that runs functions, 3.11 or later; of a virtual environment, its base is used."""
    packages: tuple[Path, ...] = ()
    """Directories of installed packages that functions may import; visible read-only."""
    preload: tuple[str, ...] = ()
    """Packages imported once and shared by all sandboxes. One that leaves threads running is left out."""
    limits: Limits = field(default_factory=Limits)
    """Of the sandboxes in the pool. A task with other limits of memory, CPU, processes or /tmp waits for a fork."""
    min_size: int = 4
    max_size: int = 20
    """The most sandboxes alive at once, idle and in use."""
    min_idle: int = 2
    max_executions: int = 100
    """Docker: executions after which a container is replaced. The native driver uses every sandbox once."""
    idle_seconds: float = 3600.0
    """Docker: unused for so long, a container that is more than the pool has to keep is removed."""
    acquire_timeout: float = 30.0
    """Seconds a caller waits for a free sandbox."""
    host_uid: int = 1_900_000_000
    """When the platform runs as root: the uid that functions have on the host; it must own nothing."""
    platform: tuple[str, int] = ("127.0.0.1", GUEST_PLATFORM_PORT)
    """Where the API really is, as this process reaches it."""
    platform_hosts: tuple[str, ...] = (f"{GUEST_PLATFORM_HOST}:{GUEST_PLATFORM_PORT}",)
    """Each `host:port` that means the API, for functions, under every egress policy."""
    resolve: Resolve = resolve
    """Looks host names up for the egress proxy."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, `*.domain`, addresses or networks, with an optional `:port`, that functions may reach even if private."""
    cgroup_parent: Path | None = None
    """A delegated cgroup v2 directory to make groups in; found automatically where possible."""


def platform_of(settings: Settings) -> tuple[str, int]:
    """The host and the port at which function workers reach the API."""
    url = urlsplit(settings.sinas_internal_url or f"http://127.0.0.1:{settings.port}")
    return url.hostname or "127.0.0.1", url.port or 80


def limits(settings: Settings, wall_seconds: float) -> Limits:
    """What one execution may use, so that it fits the sandboxes that are made ahead of time."""
    return Limits(
        wall_seconds=wall_seconds,
        memory_bytes=settings.max_function_memory << 20,
        cpus=settings.max_function_cpu,
        tmp_bytes=min(Limits.tmp_bytes, settings.max_function_storage),
    )

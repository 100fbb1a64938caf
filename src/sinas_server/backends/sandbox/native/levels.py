"""How strongly this machine can isolate: tried in order at start, by doing it."""

import os
import tempfile
from dataclasses import dataclass
from enum import StrEnum

from sinas_server.backends.sandbox import Level, SandboxUnavailable
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.guest.zygote import Config
from sinas_server.backends.sandbox.native.cgroups import Groups, open_groups
from sinas_server.backends.sandbox.native.interpreter import Interpreter, inspect
from sinas_server.backends.sandbox.native.zygote import LeavesThreadsError, Zygote, start


class LevelName(StrEnum):
    """From the strongest down."""

    CGROUPS = "namespaces+cgroups"
    NAMESPACES = "namespaces"
    LANDLOCK = "landlock"


ADVICE = (
    "Untrusted code cannot run here. On Linux 5.12 or later allow unprivileged user namespaces "
    "(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns) "
    "or run as root; in a container, allow the system calls for namespaces or Landlock in its seccomp profile; "
    "on macOS and Windows run the platform in Docker."
)
NO_CGROUPS = (
    "control groups cannot be written ({error}): memory and CPU of a process tree are checked every 50 ms "
    "instead of being limited by the kernel, and CPU time is bounded, not its rate"
)
NO_NAMESPACES = (
    "user namespaces are not available ({error}): functions have no network, cannot start processes, and the size "
    "of their temporary files is bounded per file only"
)


PACKAGES = "/packages"
"""Where the package directories are inside."""


@dataclass(frozen=True)
class Ground:
    """What was found: the level, the control groups if any, and how to start zygotes."""

    level: Level
    groups: Groups | None
    interpreter: Interpreter
    config: Config


def guest_config(config: SandboxConfig, interpreter: Interpreter, *, memory_counted: bool) -> Config:
    """The zygote's configuration, with namespaces."""
    inside = [f"{PACKAGES}/{index}" for index in range(len(config.packages))]
    packages = [(str(path), target) for path, target in zip(config.packages, inside, strict=True)]
    return Config(
        namespaces=True,
        memory_counted=memory_counted,
        host_uid=config.host_uid if os.geteuid() == 0 else None,
        tree={"mounts": [*interpreter.mounts, *packages], "links": interpreter.links},
        sys_path=[*interpreter.sys_path, *inside],
        preload=list(config.preload),
        scratch="",
    )


def _make_scratch(guest: Config) -> str:
    scratch = tempfile.mkdtemp(prefix="sinas-sandbox-")
    if guest["host_uid"] is not None:
        os.chown(scratch, guest["host_uid"], guest["host_uid"])
    return scratch


def without_namespaces(guest: Config, config: SandboxConfig, scratch: str) -> Config:
    """The same with real paths and a directory for temporary files."""
    packages = [str(path) for path in config.packages]
    standard = [path for path in guest["sys_path"] if not path.startswith(PACKAGES)]
    mounts = [(source, source) for source, _ in guest["tree"]["mounts"]]
    return {
        **guest,
        "namespaces": False,
        "scratch": scratch,
        "sys_path": [*standard, *packages],
        "tree": {"mounts": mounts, "links": []},
    }


def with_packages(ground: Ground, config: SandboxConfig) -> Config:
    """The zygote's configuration on the same ground for other packages."""
    guest = guest_config(config, ground.interpreter, memory_counted=ground.groups is not None)
    return guest if ground.config["namespaces"] else without_namespaces(guest, config, ground.config["scratch"])


async def start_zygote(interpreter: Interpreter, config: Config) -> Zygote:
    """A zygote, without the packages that turn out to leave threads. Raises `SandboxUnavailable`."""
    left_out: dict[str, str | None] = {}
    while True:
        try:
            zygote = await start(interpreter.executable, config)
        except LeavesThreadsError as error:
            config["preload"].remove(str(error))
            left_out[str(error)] = "it leaves threads running"
        else:
            zygote.started.preload.update(left_out)
            return zygote


async def survey(config: SandboxConfig) -> tuple[Ground, Zygote]:
    """Find the strongest level that works, and a zygote running at it. Raises `SandboxUnavailable`."""
    if os.uname().sysname != "Linux":
        raise SandboxUnavailable(f"{os.uname().sysname} has no namespaces. {ADVICE}")
    interpreter = inspect(config.python)
    groups: Groups | None = None
    missing: list[str] = []
    try:
        groups = open_groups(config.cgroup_parent)
    except OSError as error:
        missing.append(NO_CGROUPS.format(error=error.strerror))
    guest = guest_config(config, interpreter, memory_counted=groups is not None)
    try:
        zygote = await start_zygote(interpreter, guest)
        name = LevelName.NAMESPACES if groups is None else LevelName.CGROUPS
        reason = "each execution has its own user, PID, mount, network, IPC and UTS namespace"
    except SandboxUnavailable as error:
        missing.append(NO_NAMESPACES.format(error=error))
        guest = without_namespaces(guest, config, _make_scratch(guest))
        name, reason = LevelName.LANDLOCK, "each execution is confined by Landlock and a system call filter only"
        try:
            zygote = await start_zygote(interpreter, guest)
        except SandboxUnavailable as second:
            if groups is not None:
                groups.close()
            raise SandboxUnavailable(f"{error}; without namespaces: {second}. {ADVICE}") from second
    if guest["host_uid"] is not None:
        reason += f"; on the host it is uid {guest['host_uid']}"
    return Ground(Level(name, reason, tuple(missing)), groups, interpreter, guest), zygote

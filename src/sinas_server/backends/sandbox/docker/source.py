"""Where the pool gets containers from: how they are made, labelled, found again and removed."""

import secrets
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from pydantic import JsonValue

from sinas_server.backends.sandbox import Limits, PackageSet, SandboxUnavailable
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.docker.container import Container, Furnishing, LeavesThreadsError
from sinas_server.backends.sandbox.docker.deployment import own_container
from sinas_server.backends.sandbox.docker.engine import Engine, Facts
from sinas_server.backends.sandbox.member import SpawnError

log = structlog.get_logger()

LABEL = "org.sinas.sandbox"
INSTALLATION, WORKER = f"{LABEL}.installation", f"{LABEL}.worker"
PACKAGES = "/packages"
"""Where the package directories are inside."""
OVERHEAD_BYTES = 64 << 20
"""What the process that supervises a container and the preloaded packages may take besides an execution."""
OVERHEAD_PROCESSES = 2
CPU_PERIOD = 100_000
ABANDONED_SECONDS = 300.0
"""A container that does not run after so long was left by a worker that died making it."""


@dataclass(frozen=True)
class DockerConfig:
    """How to use an engine."""

    host: str | None = None
    """As in `DOCKER_HOST`; None for that variable, or the socket in its usual place."""
    image: str = "sinas-sandbox"
    runtime: str = "runc"
    installation: str = "sinas"
    """Which containers are ours."""
    worker: str = "worker"
    """Which of them belong to this process. One that comes back under its name finds what was left."""
    own: str = field(default_factory=own_container)
    """The name or id of the container that this process runs in, if it does."""


class ContainerSource:
    """Makes containers; an engine that is away fails each that is to be made."""

    broken = False

    def __init__(self, engine: Engine, docker: DockerConfig, config: SandboxConfig) -> None:
        self._engine = engine
        self._docker = docker
        self._config = config
        self._packages = config.packages
        self._preload = config.preload
        self._set: str | None = None
        """The hash of the set among the packages."""
        self._outside: dict[str, str] = {}
        """If this process is itself in a container: where its directories are on the engine's machine."""
        self._left_out: set[str] = set()
        """Packages that cannot be preloaded, as importing them leaves threads."""

    async def prepare(self, facts: Facts) -> None:
        """See that containers can be made, and remove old ones. Raises `SandboxUnavailable` or `EngineError`."""
        runtime, image = self._docker.runtime, self._docker.image
        if runtime not in facts.runtimes:
            known = ", ".join(sorted(facts.runtimes))
            raise SandboxUnavailable(f"SANDBOX_RUNTIME: the Docker engine has no runtime {runtime!r}; it has {known}")
        if not await self._engine.has_image(image):
            raise SandboxUnavailable(
                f"SANDBOX_IMAGE: the Docker engine has no image {image!r}. In a clone of the repository build it with "
                f"`docker build -f deploy/sandbox.Dockerfile -t {image} .`"
            )
        await self._sweep()
        self._outside = await self._engine.mounts(self._docker.own)

    async def _sweep(self) -> None:
        """Remove what an earlier process of this worker left, and what any left before it could start it."""
        for found in await self._engine.find({INSTALLATION: self._docker.installation}):
            ours = found["labels"].get(WORKER) == self._docker.worker
            abandoned = found["state"] != "running" and time.time() - found["created"] > ABANDONED_SECONDS
            if ours or abandoned:
                log.info("removing a sandbox container that was left behind", container=found["name"])
                await self._engine.remove(found["id"])

    async def use(self, packages: PackageSet | None) -> None:
        """Make containers with these packages from now on. Raises `SpawnError`, and then nothing has changed."""
        before = self._packages, self._preload, self._set
        self._set = packages.hash if packages else None
        self._packages = self._config.packages if packages is None else (*self._config.packages, packages.path)
        self._preload = self._config.preload if packages is None else (*self._config.preload, *packages.preload)
        try:
            tried = await self.make(self._config.limits)
        except SpawnError:
            self._packages, self._preload, self._set = before
            if packages is None or not packages.preload:
                raise
            # A package that ends or hangs the process that imports it must not take all functions down.
            await self.use(replace(packages, preload=()))
            return
        tried.kill()
        await tried.bury()

    async def repair(self) -> None:
        """There is nothing to repair."""

    async def close(self) -> None:
        """The pool ends each container by itself."""

    async def make(self, limits: Limits) -> Container:
        """A container in which a process waits. Raises `SpawnError`."""
        while True:
            name = f"sinas-sandbox-{self._docker.worker}-{secrets.token_hex(4)}"
            container = Container(self._engine, name, limits, self._set)
            preload = tuple(name for name in self._preload if name not in self._left_out)
            try:
                await container.start(self._container_config(limits), Furnishing(self._inside(), preload))
            except LeavesThreadsError as error:
                self._left_out.add(str(error))
            else:
                return container

    def _inside(self) -> tuple[str, ...]:
        return tuple(f"{PACKAGES}/{index}" for index in range(len(self._packages)))

    def _container_config(self, limits: Limits) -> dict[str, JsonValue]:
        memory = limits.memory_bytes + OVERHEAD_BYTES
        tmp = f"rw,noexec,nosuid,nodev,mode=1777,size={limits.tmp_bytes},nr_inodes=4096"
        return {
            "Image": self._docker.image,
            "Labels": {
                LABEL: "1",
                INSTALLATION: self._docker.installation,
                WORKER: self._docker.worker,
            },
            "OpenStdin": True,
            "StdinOnce": True,  # when we are gone its input ends, and so does it
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Env": [],
            "HostConfig": {
                "AutoRemove": True,
                "Runtime": self._docker.runtime,
                "NetworkMode": "none",
                "IpcMode": "none",
                "ReadonlyRootfs": True,
                "CapDrop": ["ALL"],
                "CapAdd": ["SETUID", "SETGID"],
                "SecurityOpt": ["no-new-privileges"],
                "Memory": memory,
                "MemorySwap": memory,
                "CpuPeriod": CPU_PERIOD,
                "CpuQuota": int(limits.cpus * CPU_PERIOD),
                "PidsLimit": limits.processes + OVERHEAD_PROCESSES,
                "OomScoreAdj": 0,
                "Tmpfs": {"/tmp": tmp},  # noqa: S108 - inside the container
                "Mounts": [
                    {"Type": "bind", "Source": _outside(path, self._outside), "Target": inside, "ReadOnly": True}
                    for path, inside in zip(self._packages, self._inside(), strict=True)
                ],
                "LogConfig": {"Type": "none"},
                "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            },
        }


def _outside(path: Path, mounts: dict[str, str]) -> str:
    """A directory of this container as the engine's machine knows it."""
    for parent in (path, *path.parents):
        source = mounts.get(str(parent))
        if source is not None:
            return str(Path(source, path.relative_to(parent)))
    return str(path)

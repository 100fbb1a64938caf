"""The Docker driver: warm containers, each used for one execution at a time by a process with fresh state."""

import asyncio

import structlog

from sinas_server.backends.sandbox import Level, OnOutput, Outcome, PackageSet, SandboxUnavailable, Stats, Task
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.docker.container import Container, other_interpreter
from sinas_server.backends.sandbox.docker.deployment import Deployment
from sinas_server.backends.sandbox.docker.engine import Engine, EngineError, Facts, old_runc
from sinas_server.backends.sandbox.docker.source import ContainerSource, DockerConfig
from sinas_server.backends.sandbox.egress import EgressProxy, make_policy
from sinas_server.backends.sandbox.guest.wire import interpreter
from sinas_server.backends.sandbox.member import SpawnError
from sinas_server.backends.sandbox.outcome import conclude
from sinas_server.backends.sandbox.pool import Pool, PoolSize

log = structlog.get_logger()

HEALTH_SECONDS = 60.0
ANSWER_SECONDS = 10.0
OLD_RUNC = (
    "runc {version} may have the escapes of 2025 (CVE-2025-31133, -52565, -52881; mended in 1.2.8, 1.3.3 and 1.4, and "
    "in packages of distributions without a new number): make sure that yours is mended"
)
NO_LANDLOCK = "Landlock is not available: functions can read all of the sandbox image, which holds no secret"


class DockerSandbox:
    """A `Sandbox` of containers."""

    def __init__(self, config: SandboxConfig, docker: DockerConfig) -> None:
        self._config = config
        self._docker = docker
        self._policy = make_policy(config)
        self._size = PoolSize(
            config.min_size, config.max_size, config.min_idle, config.acquire_timeout, config.max_executions
        )
        self._engine: Engine | None = None
        self._source: ContainerSource | None = None
        self._deployment: Deployment | None = None
        self._switching = asyncio.Lock()
        self._pool: Pool[Container] | None = None
        self._level: Level | None = None
        self._health: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find the engine and fill the pool. Raises `SandboxUnavailable`."""
        self._engine = Engine(self._docker.host)
        try:
            facts = await self._engine.facts()
            self._source = ContainerSource(self._engine, self._docker, self._config)
            self._deployment = Deployment(self._engine, self._docker.own)
            await self._source.prepare(facts)
            self._pool = Pool(self._size, self._config.limits, self._source)
            await self._pool.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, EngineError):
                raise SandboxUnavailable(str(error)) from error
            raise
        self._level = self._describe(facts, self._pool)
        self._health = asyncio.create_task(self._look_after(self._pool))

    def _describe(self, facts: Facts, pool: Pool[Container]) -> Level:
        missing: list[str] = []
        runtime = self._docker.runtime
        if runtime == "runc":
            runtime = f"runc {facts.runc}"
            if old_runc(facts.runc):
                missing.append(OLD_RUNC.format(version=facts.runc))
        if not all(member.landlock for member in pool.members()):
            missing.append(NO_LANDLOCK)
        missing += {other_interpreter(it.interpreter) for it in pool.members() if it.interpreter != interpreter()}
        reason = (
            "each execution is a fresh process with a user id of its own in a container without network "
            f"(Docker {facts.version}, {runtime})"
        )
        return Level("docker", reason, tuple(missing))

    async def _look_after(self, pool: Pool[Container]) -> None:
        """Every minute exchange signs of life with each container, and end idle ones that do not answer.

        One that hears nothing ends by itself. Those that nobody has needed for long are ended as well.
        """
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            members = pool.members()
            answers = await asyncio.gather(*(member.answers(ANSWER_SECONDS) for member in members))
            for member, alive in zip(members, answers, strict=True):
                if not alive:
                    log.warning("a sandbox container does not answer", container=member.name)
                    pool.remove(member)
            pool.trim(self._config.idle_seconds)

    @property
    def level(self) -> Level:
        """How functions are isolated here. Raises `SandboxUnavailable` before `start`."""
        if self._level is None:
            raise SandboxUnavailable("the sandbox was not started")
        return self._level

    async def run(self, task: Task, on_output: OnOutput | None = None) -> Outcome:
        """Run one task in a fresh process. Raises `SandboxBusy` and, when closed, `SandboxUnavailable`."""
        pool = self._pool
        if pool is None:
            raise SandboxUnavailable("the sandbox was not started")
        container = await pool.take(task.limits)
        proxy = EgressProxy(self._policy, task.egress)
        try:
            return conclude(task, await container.execute(task, proxy, on_output))
        finally:
            proxy.close()
            pool.give_back(container)

    async def use(self, packages: PackageSet | None) -> None:
        """Run from now on with these packages. Raises `SandboxUnavailable`, and then nothing has changed."""
        if self._source is None or self._pool is None:
            raise SandboxUnavailable("the sandbox was not started")
        async with self._switching:
            try:
                await self._source.use(packages)
            except SpawnError as error:
                raise SandboxUnavailable(str(error)) from error
            self._pool.outdate()

    def packages_in_use(self) -> frozenset[str]:
        """The hashes of the sets that what is alive was started with."""
        return frozenset() if self._pool is None else self._pool.packages_in_use()

    def stats(self) -> Stats:
        """The pool now."""
        return Stats(self._size.max_size, self._size.max_executions) if self._pool is None else self._pool.stats()

    async def scale(self, target: int) -> int:
        """Keep so many containers."""
        return 0 if self._pool is None else await self._pool.scale(target)

    async def reload(self) -> int:
        """Make the idle containers anew."""
        return 0 if self._pool is None else await self._pool.replace()

    async def has(self, name: str) -> bool:
        """Whether a sandbox has this name, or a container of the platform. Raises `SandboxUnavailable`."""
        if self._pool is None or self._deployment is None:
            return False
        try:
            return self._pool.find(name) is not None or await self._deployment.find(name) is not None
        except EngineError as error:
            raise SandboxUnavailable(str(error)) from error

    async def restart(self, name: str) -> bool:
        """Restart it; what runs in a sandbox ends. Raises `SandboxUnavailable`."""
        member = None if self._pool is None else self._pool.find(name)
        if self._pool is None or self._deployment is None:
            raise SandboxUnavailable("the sandbox was not started")
        if member is not None:
            self._pool.restart(member)
            return True
        try:
            return await self._deployment.restart(name)
        except EngineError as error:
            raise SandboxUnavailable(str(error)) from error

    async def close(self) -> None:
        """Remove all containers of this worker."""
        if self._health is not None:
            self._health.cancel()
            await asyncio.gather(self._health, return_exceptions=True)
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.close()

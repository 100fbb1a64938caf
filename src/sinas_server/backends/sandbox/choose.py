"""Which driver runs functions here: the one that is set, or the best that works."""

import hashlib
import os

import structlog

from sinas_server.backends.sandbox import Level, Sandbox, SandboxUnavailable
from sinas_server.backends.sandbox.config import SandboxConfig, limits, platform_of
from sinas_server.backends.sandbox.native import LevelName, NativeSandbox
from sinas_server.settings import Settings

log = structlog.get_logger()


async def start_sandbox(settings: Settings, worker: str) -> Sandbox:
    """A started sandbox, from the process' main thread. Raises `SandboxUnavailable` with the reason.

    `SANDBOX_DRIVER=auto` takes Docker where `DOCKER_HOST` names an engine; else the native driver where namespaces
    hold; else an engine at its usual place; else the native driver at whatever level it has. `worker` is who owns the
    containers.
    """
    config = _config(settings)
    driver = settings.sandbox_driver
    if driver == "docker" or (driver == "auto" and (settings.docker_host or os.environ.get("DOCKER_HOST"))):
        return await _started(_docker(settings, config, worker))
    native = NativeSandbox(config)
    if driver == "native":
        return await _started(native)
    try:
        await native.start()
    except SandboxUnavailable as error:
        try:
            return await _started(_docker(settings, config, worker))
        except SandboxUnavailable as second:
            raise SandboxUnavailable(f"Native driver: {error} Docker driver: {second}") from second
    if native.level.name == LevelName.LANDLOCK:
        try:
            stronger = await _started(_docker(settings, config, worker))
        except SandboxUnavailable as error:
            log.info("no Docker engine in place of the weakest level", reason=str(error))
        else:
            await native.close()
            return stronger
    return native


def _config(settings: Settings) -> SandboxConfig:
    return SandboxConfig(
        limits=limits(settings, settings.function_timeout),
        min_size=settings.sandbox_min_size,
        max_size=settings.sandbox_max_size,
        min_idle=settings.sandbox_min_idle,
        max_executions=settings.sandbox_max_executions,
        idle_seconds=settings.function_container_idle_timeout,
        acquire_timeout=settings.pool_acquire_timeout,
        platform=platform_of(settings),
        allowed_hosts=settings.sinas_allowed_hosts,
    )


def _docker(settings: Settings, config: SandboxConfig, worker: str) -> Sandbox:
    from sinas_server.backends.sandbox.docker import DockerConfig, DockerSandbox  # lazy: its HTTP client takes memory

    key = settings.secret_key.get_secret_value() if settings.secret_key else str(settings.sinas_data_dir)
    return DockerSandbox(
        config,
        DockerConfig(
            host=settings.docker_host,
            image=settings.sandbox_image,
            runtime=settings.sandbox_runtime,
            installation=hashlib.sha256(key.encode()).hexdigest()[:12],
            worker=worker,
        ),
    )


async def _started(sandbox: Sandbox) -> Sandbox:
    await sandbox.start()
    return sandbox


async def probe(settings: Settings) -> Level:
    """How functions would be isolated, found by doing it. Raises `SandboxUnavailable`."""
    least = {"sandbox_min_size": 1, "sandbox_min_idle": 0, "sandbox_max_size": 1}
    sandbox = await start_sandbox(settings.model_copy(update=least), "doctor")
    try:
        return sandbox.level
    finally:
        await sandbox.close()

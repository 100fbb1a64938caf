"""What each process of the platform does: serve the API, work on a queue, run the loops, prepare the database."""

import asyncio
import dataclasses
import os
import signal
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import structlog
import uvicorn
import uvloop

from sinas_server import catalog
from sinas_server.app import create_app
from sinas_server.backends.blobs.disk import DiskBlobs
from sinas_server.backends.db import open_engine
from sinas_server.backends.db.migrate import migrate
from sinas_server.backends.delivery import Receivers
from sinas_server.backends.llm.open import ModelPool
from sinas_server.backends.mail import Mailer
from sinas_server.backends.mail.outbox import OutboxMailer
from sinas_server.backends.mail.smtp import SmtpMailer, SmtpServer
from sinas_server.backends.oidc import OidcClient, OidcProvider
from sinas_server.backends.queue.redis import RedisWake
from sinas_server.backends.redis import Hints, open_redis
from sinas_server.backends.render.process import ProcessRenderer
from sinas_server.backends.sandbox import Sandbox
from sinas_server.backends.stream.redis import RedisSignals, RedisStreams
from sinas_server.config.startup import apply_file
from sinas_server.dependencies.follow import PackageFollower
from sinas_server.dependencies.install import open_directories
from sinas_server.functions.shared_workers import SharedWorkers
from sinas_server.identity.bootstrap import bootstrap
from sinas_server.identity.guard import some_administrator
from sinas_server.identity.resolve import Principal, act_for, authenticate
from sinas_server.kernel.access import Caller
from sinas_server.kernel.command import obey
from sinas_server.kernel.heartbeat import beating
from sinas_server.kernel.job import Worker
from sinas_server.kernel.loop import run_loop, run_loops
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Database
from sinas_server.kit.crypto import Sealer
from sinas_server.settings import Settings

if TYPE_CHECKING:
    from sinas_server.backends.sandbox.shared import SharedPool

log = structlog.get_logger()
API_GRACE_SECONDS = 8
TASK_SLOTS = 10
PACKAGE_PATIENCE_SECONDS = 30.0


def open_mailer(settings: Settings) -> Mailer:
    """SMTP where it is configured, otherwise files in the data directory."""
    domain = settings.smtp_domain or settings.domain or "sinas.localhost"
    if settings.smtp_host is None:
        return OutboxMailer(settings.sinas_data_dir / "outbox", domain)
    password = settings.smtp_password.get_secret_value() if settings.smtp_password else None
    return SmtpMailer(SmtpServer(settings.smtp_host, settings.smtp_port, settings.smtp_user, password, domain))


def open_oidc(settings: Settings) -> OidcProvider | None:
    """The OpenID Connect provider, if one is configured; it is asked nothing before the first login."""
    if settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    secret = settings.oidc_client_secret.get_secret_value() if settings.oidc_client_secret else None
    return OidcProvider(OidcClient(settings.oidc_issuer, settings.oidc_client_id, secret, settings.oidc_scopes))


@asynccontextmanager
async def open_runtime(settings: Settings, worker_name: str, *, pool_size: int = 5) -> AsyncIterator[Runtime]:
    """Connect to everything a process needs, and receive signals while the context is open."""
    url = settings.sqlalchemy_url.render_as_string(hide_password=False)
    engine = open_engine(url, pool_size=pool_size, prepare=settings.database_prepare)
    redis = open_redis(settings.redis_url.get_secret_value())
    hints = Hints(redis)
    signals = RedisSignals(redis, hints)
    renderer = ProcessRenderer(settings.template_timeout)
    runtime = Runtime(
        settings=settings,
        database=Database(engine, Sealer(settings.encryption_keys), settings),
        signals=signals,
        streams=RedisStreams(redis),
        wake=RedisWake(redis, hints),
        redis=redis,
        mailer=open_mailer(settings),
        renderer=renderer,
        models=ModelPool(renderer),
        blobs=DiskBlobs(settings.blobs_directory),
        authenticate=authenticate,
        kinds={kind.name: kind for kind in catalog.KINDS},
        resources=catalog.RESOURCES,
        toolsets=catalog.TOOLSETS,
        tasks=catalog.TASKS,
        departures=catalog.DEPARTURES,
        batch_members=catalog.BATCH_MEMBERS,
        receivers=Receivers(settings.callback_allowed_hosts),
        oidc=open_oidc(settings),
        worker_name=worker_name,
    )
    receiver = asyncio.create_task(signals.run())
    try:
        yield runtime
    finally:
        receiver.cancel()
        await asyncio.gather(receiver, return_exceptions=True)
        await runtime.models.close()
        await runtime.renderer.close()
        if runtime.oidc is not None:
            await runtime.oidc.close()
        await runtime.database.close()
        await hints.close()
        await redis.aclose()


def serve_api(settings: Settings, socket: sockets.socket, slot: int) -> None:
    """Serve HTTP on a listening socket until SIGTERM or SIGINT."""

    @asynccontextmanager
    async def running() -> AsyncIterator[Runtime]:
        name = _worker_name(settings, "api", slot)
        async with open_runtime(settings, name, pool_size=10) as runtime, beating(runtime, "api"):
            loops = asyncio.create_task(run_loops(runtime, catalog.API_LOOPS))
            yield runtime
            loops.cancel()
            await asyncio.gather(loops, return_exceptions=True)
            for loop in catalog.API_LOOPS:  # what was collected since the last step
                await loop.step(runtime)

    config = uvicorn.Config(
        create_app(settings, running),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.domain is not None,
        forwarded_allow_ips="*",
        timeout_graceful_shutdown=API_GRACE_SECONDS,
        timeout_keep_alive=75,
    )
    uvloop.run(uvicorn.Server(config).serve(sockets=[socket]))


def _worker_name(settings: Settings, role: str, slot: int) -> str:
    """Embedded, a slot's name is the same after a restart, so that it takes back what its predecessor held."""
    return f"{role}-{slot}" if settings.embedded else f"{role}-{sockets.gethostname()}-{os.getpid()}-{slot}"


async def _until_stopped(work: Coroutine[object, object, None]) -> None:
    """Run until the work ends or SIGTERM or SIGINT asks to stop."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.debug("stopped")


async def _work(runtime: Runtime, role: str, slots: int) -> None:
    """Work on the role's queue until canceled, giving signs of life."""
    worker = Worker(runtime, catalog.JOBS[role], slots)
    async with beating(runtime, role, worker.load):
        await worker.run()


async def start_function_sandbox(settings: Settings, worker: str) -> Sandbox:
    """The sandbox of a function worker. Raises `SandboxUnavailable`."""
    from sinas_server.backends.sandbox.choose import start_sandbox  # lazy: function workers only

    sandbox = await start_sandbox(settings, worker)
    level = sandbox.level
    log.info("sandbox", isolation=str(level.name), reason=level.reason)
    for problem in level.missing:
        log.warning("sandbox", missing=problem)
    return sandbox


def open_shared_pool(settings: Settings) -> "SharedPool":
    """The shared pool of a function worker; its processes start when they are needed."""
    from sinas_server.backends.sandbox.config import platform_of  # lazy: function workers only
    from sinas_server.backends.sandbox.shared import SharedConfig, SharedPool  # lazy: the same

    return SharedPool(
        SharedConfig(
            count=settings.default_worker_count,
            memory_bytes=settings.shared_worker_memory << 20,
            platform=platform_of(settings),
        )
    )


async def _execute(runtime: Runtime, shared_pool: "SharedPool", slots: int) -> None:
    """Work on executions, and keep the shared pool at what is wanted."""
    await _together([SharedWorkers(runtime, shared_pool).follow(), _work(runtime, "functions", slots)])


def work_on_functions(settings: Settings, slot: int) -> None:
    """Execute functions until SIGTERM."""

    async def work() -> None:
        name = _worker_name(settings, "functions", slot)
        sandbox = await start_function_sandbox(settings, name)
        shared_pool = open_shared_pool(settings)
        await shared_pool.start()
        directories = open_directories(settings)
        try:
            async with open_runtime(settings, name) as opened:
                slots = settings.queue_function_concurrency
                equipped = dataclasses.replace(opened, sandbox=sandbox, shared_pool=shared_pool)
                working = partial(_execute, equipped, shared_pool, slots)
                parts: list[Coroutine[object, object, None]] = [obey(equipped, catalog.COMMANDS)]
                if settings.allow_package_installation:
                    follower = PackageFollower(directories, [sandbox, shared_pool])
                    parts += [run_loop(equipped, follower.loop), _once_settled(follower, working)]
                else:
                    parts.append(working())
                await _together(parts)
        finally:
            await shared_pool.close()
            await sandbox.close()
            directories.close()

    uvloop.run(_until_stopped(work()))


async def _once_settled(follower: PackageFollower, work: Callable[[], Awaitable[None]]) -> None:
    """Work as soon as functions find their packages; an index that does not answer holds nobody up for long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PACKAGE_PATIENCE_SECONDS):
            await follower.settled.wait()
    await work()


def work_on_turns(settings: Settings, slot: int) -> None:
    """Run agents until SIGTERM."""

    async def work() -> None:
        async with open_runtime(settings, _worker_name(settings, "agents", slot)) as runtime:
            await _work(runtime, "agents", settings.queue_agent_concurrency)

    uvloop.run(_until_stopped(work()))


def run_scheduler(settings: Settings, slot: int) -> None:
    """Run the loops and the small tasks until SIGTERM."""

    async def work() -> None:
        async with open_runtime(settings, _worker_name(settings, "scheduler", slot)) as runtime:
            resolving = Worker(runtime, catalog.JOBS["packages"], 1).run()
            await _together([run_loops(runtime, catalog.LOOPS), _work(runtime, "tasks", TASK_SLOTS), resolving])

    uvloop.run(_until_stopped(work()))


async def _together(parts: Sequence[Coroutine[object, object, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for part in parts:
            group.create_task(part)


def prepare(settings: Settings) -> None:
    """Bring the database to this release and make sure of what every installation has; safe at every start."""
    if migrate(settings.sqlalchemy_url):
        log.info("database brought to this release")

    async def fill() -> None:
        async with open_runtime(settings, "prepare") as runtime:
            await bootstrap(runtime)
            admin = await _administrator(runtime)
            for step in (*catalog.BOOTSTRAPS, *(catalog.EMBEDDED_BOOTSTRAPS if settings.embedded else ())):
                await step(runtime, admin)
            if settings.auto_apply_config and settings.config_file:
                await apply_file(runtime, admin, settings.config_file)

    asyncio.run(fill())


async def _administrator(runtime: Runtime) -> Caller:
    """An administrator, on whose behalf an installation gets what it starts with."""
    async with runtime.database.unit() as db:
        user_id = await some_administrator(db, runtime.settings.superadmin_email.lower())
    return await act_for(runtime, Principal(user_id), "system")

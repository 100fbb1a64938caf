"""Commands that run the platform: all of it on one machine, or one role against given servers."""

import os
import signal
import time
from collections.abc import Callable

from pydantic import SecretStr

from sinas_server.backends.db.migrate import MigrationError
from sinas_server.backends.embedded.datadir import DataDir
from sinas_server.backends.embedded.doctor import diagnose
from sinas_server.backends.embedded.postgres import Postgres
from sinas_server.backends.embedded.process import EmbeddedError, InterruptedStartError
from sinas_server.backends.embedded.role import Role, run_once
from sinas_server.backends.embedded.server import running
from sinas_server.backends.embedded.supervisor import Supervisor, answers_health, bind_api_socket
from sinas_server.backends.embedded.valkey import Valkey
from sinas_server.cli.console import fail, log_to_terminal, say
from sinas_server.kit.collector import not_collecting
from sinas_server.settings import Settings, SettingsError

STOP_SECONDS = 60


def up(settings: Settings) -> None:
    """Run everything in the foreground until Ctrl-C. Exits 1 with the reason if that is not possible."""
    log_to_terminal(debug=settings.debug)
    data = DataDir(settings.sinas_data_dir)
    try:
        with data.lock() as lock:
            _run_stack(settings, data, lock)
    except (InterruptedStartError, KeyboardInterrupt):
        fail("stopped before it was ready", 130)
    except EmbeddedError as error:
        fail(str(error))


def _run_stack(settings: Settings, data: DataDir, lock: int) -> None:
    listener = bind_api_socket(settings.bind_host, settings.port)
    postgres = None if settings.database_given else Postgres(data)
    valkey = None if settings.redis_given else Valkey(data)
    servers = [server for server in (postgres, valkey) if server]
    with running(servers):
        with not_collecting():
            from sinas_server import roles  # lazy: the servers start while this is being imported

        for server in servers:
            server.wait_ready()
        settings = _completed(settings, data, postgres, valkey)
        run_once(Role("prepare", lambda _: roles.prepare(settings)))
        Supervisor(
            servers,
            [
                Role("api", lambda slot: roles.serve_api(settings, listener, slot), settings.api_processes),
                _worker(settings, "functions"),
                _worker(settings, "agents"),
                _worker(settings, "scheduler"),
            ],
            is_ready=lambda: answers_health(settings.bind_host, settings.port),
            on_ready=lambda: _greet(settings, data),
            close_in_roles=[lock],
        ).run()


def _worker(settings: Settings, name: str) -> Role:
    from sinas_server import roles  # lazy: only some commands need the whole platform

    if name == "functions":
        return Role(name, lambda slot: roles.work_on_functions(settings, slot), settings.function_worker_processes)
    if name == "agents":
        return Role(name, lambda slot: roles.work_on_turns(settings, slot), settings.agent_worker_processes)
    return Role(name, lambda slot: roles.run_scheduler(settings, slot))


def _completed(settings: Settings, data: DataDir, postgres: Postgres | None, valkey: Valkey | None) -> Settings:
    """The settings with the servers that run here and, where the environment has none, the generated secrets."""
    changes: dict[str, object] = {
        "database_url": SecretStr(postgres.url()) if postgres else settings.database_url,
        "database_prepare": postgres is not None or settings.database_prepare,
        "redis_url": SecretStr(valkey.url()) if valkey else settings.redis_url,
        "secret_key": settings.secret_key or SecretStr(data.ensure_secret("SECRET_KEY")),
        "encryption_key": settings.encryption_key or SecretStr(data.ensure_secret("ENCRYPTION_KEY")),
    }
    return settings.model_copy(update=changes)


def _greet(settings: Settings, data: DataDir) -> None:
    address = f"http://localhost:{settings.port}"
    mail = "by mail" if settings.smtp_host else f"in {data.outbox} and in this log"
    say()
    say(f"  Sinas is ready at {address}   (API docs: {address}/docs and {address}/api/v1/docs)")
    say(f"  Log in as {settings.superadmin_email}: POST /auth/login; the code arrives {mail}.")
    say(f"  Or use the administrator's API key in {data.admin_key}")
    say("  Ctrl-C stops everything.")
    say()


def down(settings: Settings) -> None:
    """Stop what `sinas up` runs in the data directory, and wait until it has ended."""
    data = DataDir(settings.sinas_data_dir)
    pid = data.holder() if data.lock_file.exists() else None
    if pid is None:
        say(f"nothing runs in {data.root}")
        return
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while data.holder() == pid:
        if time.monotonic() > until:
            fail(f"process {pid} has not ended after {STOP_SECONDS} seconds")
        time.sleep(0.1)
    say("stopped")


def doctor(settings: Settings) -> None:
    """Print every finding; exits 1 if anything is missing."""
    import asyncio  # lazy: `up` forks, and must not have a loop

    from sinas_server.backends.sandbox import SandboxUnavailable  # lazy: only this command needs it
    from sinas_server.backends.sandbox.choose import probe  # lazy: the same

    findings = diagnose(DataDir(settings.sinas_data_dir), settings.bind_host, settings.port)
    complete = True
    for finding in findings:
        complete = complete and finding.ok
        say(f"{'ok ' if finding.ok else 'NO '} {finding.name}: {finding.detail}")
        if finding.advice:
            say(f"      {finding.advice}")
    try:
        level = asyncio.run(probe(settings))
    except SandboxUnavailable as error:
        fail(f"NO  sandbox: {error}")
    say(f"ok  sandbox: {level.name} ({level.reason})")
    for missing in level.missing:
        say(f"      {missing}")
    if not complete:
        fail("Something is missing; see above.")


def api(settings: Settings) -> None:
    """Serve the API with `UVICORN_WORKERS` processes."""
    from sinas_server import roles  # lazy: only some commands need the whole platform

    _check_clustered(settings)
    listener = bind_api_socket(settings.bind_host, settings.port)
    _supervise(
        settings,
        [Role("api", lambda slot: roles.serve_api(settings, listener, slot), settings.api_processes)],
        prepare=lambda: run_once(Role("prepare", lambda _: roles.prepare(settings))),
    )


def workers(settings: Settings, role: str) -> None:
    """Run the workers of one queue, or the scheduler."""
    _check_clustered(settings)
    _supervise(settings, [_worker(settings, role)])


def _check_clustered(settings: Settings) -> None:
    try:
        if not (settings.signing_key and settings.encryption_keys and settings.database_given):
            fail("DATABASE_URL: missing; `sinas up` runs servers of its own, this command needs given ones", 2)
    except SettingsError as error:
        fail(str(error), 2)


def _supervise(settings: Settings, roles: list[Role], prepare: Callable[[], None] | None = None) -> None:
    log_to_terminal(debug=settings.debug)
    try:
        if prepare:
            prepare()
        Supervisor([], roles).run()
    except (EmbeddedError, MigrationError) as error:
        fail(str(error))

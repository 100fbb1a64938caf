"""What every installation starts with, put back before each test: what it would take to begin anew is done once."""

import psycopg
import redis
from sqlalchemy import delete

from sinas_server.identity.bootstrap import ADMIN_KEY_FILE, bootstrap
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import Base
from sinas_server.settings import Settings

TABLES = tuple(Base.metadata.sorted_tables)


def _define(name: str, *more: str) -> str:
    """A function that empties every table and then does more, with plans that its connection keeps.

    On small tables DELETE is far faster than TRUNCATE. As a replica PostgreSQL fires no triggers, also none of foreign
    keys and those that protect rows.
    """
    replica = "PERFORM set_config('session_replication_role', 'replica', true)"
    body = "; ".join([replica, *(str(delete(table)) for table in reversed(TABLES)), *more])
    return f"CREATE FUNCTION fresh.{name}() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body}; END $$"


class Installation:
    """The servers of a session, as they are at the beginning of each of its tests."""

    def __init__(self, database_url: str, redis_url: str) -> None:
        self._url = database_url.replace("+psycopg", "")
        self._redis = redis.Redis.from_url(redis_url)
        self._database = self._connect()
        self._run("CREATE SCHEMA fresh")
        self._run(_define("nothing"))
        self._kept: tuple[object, ...] | None = None
        self._admin_key = ""

    async def begin(self, runtime: Runtime) -> None:
        """Forget all that was, and start as the first process of an installation does."""
        self._redis.flushdb()
        if self._kept != _shape(runtime.settings):
            self._run("SELECT fresh.nothing()")
            await bootstrap(runtime)
            if self._kept is None:
                self._keep(runtime.settings)
            return
        self._run("SELECT fresh.start()")
        key = runtime.settings.sinas_data_dir / ADMIN_KEY_FILE
        key.touch(0o600)
        key.write_text(self._admin_key)

    def _keep(self, settings: Settings) -> None:
        for table in TABLES:
            self._run(f"CREATE TABLE fresh.{table} AS TABLE {table}")
        copies = [f"INSERT INTO {table} SELECT * FROM fresh.{table}" for table in TABLES]  # noqa: S608 - names of tables
        self._run(_define("start", *copies))
        self._admin_key = (settings.sinas_data_dir / ADMIN_KEY_FILE).read_text()
        self._kept = _shape(settings)

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self._url, autocommit=True)

    def _run(self, statement: str) -> None:
        try:
            self._database.execute(statement.encode())
        except psycopg.OperationalError:  # the test before has cut all connections
            self._database.close()
            self._database = self._connect()
            self._database.execute(statement.encode())

    def close(self) -> None:
        self._database.close()
        self._redis.close()


def _shape(settings: Settings) -> tuple[object, ...]:
    """What decides on what an installation starts with."""
    return settings.superadmin_email, settings.signing_key, settings.sinas_mode

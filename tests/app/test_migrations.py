"""The migrations make exactly the tables of the code, once, whoever starts at the same time."""

import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, make_url

import sinas_server.catalog  # noqa: F401 - imports every table
from sinas_server.backends.db.migrate import MigrationError, folder, head, migrate


@pytest.fixture
def fresh(database_url: str) -> Iterator[URL]:
    """An empty database of its own."""
    name = f"fresh_{uuid4().hex[:12]}"
    with psycopg.connect(plain(make_url(database_url)), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield make_url(database_url).set(drivername="postgresql+psycopg", database=name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def test_they_equal_the_tables(fresh: URL) -> None:
    assert migrate(fresh)
    config = Config()
    config.set_main_option("script_location", str(folder()))
    config.attributes["url"] = fresh
    command.check(config)


def test_they_run_once(fresh: URL) -> None:
    assert [migrate(fresh), migrate(fresh)] == [True, False]


def test_processes_that_start_together_take_turns(fresh: URL) -> None:
    program = (
        "import sys; from sqlalchemy import make_url; from sinas_server.backends.db.migrate import migrate; "
        "migrate(make_url(sys.argv[1]))"
    )
    arguments = [sys.executable, "-c", program, fresh.render_as_string(hide_password=False)]
    processes = [subprocess.Popen(arguments) for _ in range(3)]
    assert [process.wait(90) for process in processes] == [0, 0, 0]
    with psycopg.connect(plain(fresh)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(head(),)]


def test_a_newer_database_is_refused(fresh: URL) -> None:
    migrate(fresh)
    with psycopg.connect(plain(fresh)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(MigrationError, match="revision 9999, which this release does not know"):
        migrate(fresh)


def test_a_database_that_cannot_hold_every_text_is_refused(fresh: URL) -> None:
    name = f"{fresh.database}_ascii"
    with psycopg.connect(plain(fresh), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        with pytest.raises(MigrationError, match="encoded as SQL_ASCII: make one with ENCODING 'UTF8'"):
            migrate(fresh.set(database=name))
        connection.execute(f"DROP DATABASE {name}")

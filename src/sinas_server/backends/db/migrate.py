"""Bringing the platform's own database to the schema of this release."""

import re
from functools import cache
from pathlib import Path

import psycopg
from sqlalchemy import URL

LOCK = 0x51AA5003
"""Transaction-level advisory lock: processes that start together migrate one after the other."""

ENCODING = "UTF8"


class MigrationError(Exception):
    """The database cannot be brought to this release; the message says why."""


def folder() -> Path:
    """Where the migrations are: in the repository, or inside the installed package."""
    here = Path(__file__).resolve()
    candidates = (here.parents[4] / "migrations", here.parents[2] / "migrations")
    return next(path for path in candidates if (path / "env.py").is_file())


@cache
def head() -> str:
    """The newest revision, read from the files: asking Alembic would cost its import at every start."""
    revisions: set[str] = set()
    parents: set[str] = set()
    for file in (folder() / "versions").glob("*.py"):
        source = file.read_text()
        revisions |= set(re.findall(r'^revision: str = "(\w+)"', source, re.MULTILINE))
        parents |= set(re.findall(r'^down_revision: str \| None = "(\w+)"', source, re.MULTILINE))
    newest = revisions - parents
    if len(newest) != 1:
        raise MigrationError(f"the migrations have {len(newest)} newest revisions: {', '.join(sorted(newest))}")
    return newest.pop()


def _current(url: URL) -> str | None:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, connect_timeout=10) as connection:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != ENCODING:
            raise MigrationError(
                f"the database is encoded as {encoding}: make one with ENCODING '{ENCODING}', which every text needs"
            )
        known = connection.execute("SELECT to_regclass('alembic_version')").fetchone()
        if not known or known[0] is None:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None


def migrate(url: URL) -> bool:
    """Apply what is missing; whether anything was. Raises `MigrationError` for a database of a newer release."""
    current = _current(url)
    if current == head():
        return False
    from alembic import command  # lazy: needed only when the schema changes
    from alembic.config import Config  # lazy: the same
    from alembic.util import CommandError  # lazy: the same

    config = Config()
    config.set_main_option("script_location", str(folder()))
    config.attributes["url"] = url
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MigrationError(f"the database is at revision {current}, which this release does not know") from error
    return True

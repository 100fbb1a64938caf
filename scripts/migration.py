"""Writes a migration from the difference between the tables and the migrations: `python -m scripts.migration NAME`.

Until the first release there is one migration, `0001`, and `--first` writes it anew.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import make_url

import sinas_server.catalog  # noqa: F401 - imports every table
from sinas_server.backends.db.migrate import folder, migrate
from sinas_server.backends.embedded import embedded_servers


def main() -> None:
    """Start a database, bring it to the newest migration and write the next one."""
    name = sys.argv[1]
    first = name == "--first"
    versions = folder() / "versions"
    versions.mkdir(exist_ok=True)
    if first:
        for old in versions.glob("*.py"):
            old.unlink()
    number = f"{len(list(versions.glob('*.py'))) + 1:04}"
    with tempfile.TemporaryDirectory() as place, embedded_servers(Path(place) / "data") as (url, _):
        config = Config()
        config.set_main_option("script_location", str(folder()))
        config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
        config.attributes["url"] = make_url(url).set(drivername="postgresql+psycopg")
        if not first:
            migrate(config.attributes["url"])
        message = "First schema" if first else name
        command.revision(config, message=message, autogenerate=True, rev_id=number)
    for step in (["check", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *step, str(versions)], check=True)


if __name__ == "__main__":
    main()

"""How Alembic runs here: one transaction under a lock, for upgrades and for comparing with the tables."""

from alembic import context
from sqlalchemy import create_engine, text

from sinas_server.backends.db.migrate import LOCK
from sinas_server.kernel.tables import Base


def run() -> None:
    """Migrate, or compare, on a connection of its own."""
    engine = create_engine(context.config.attributes["url"])
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=False)
        context.run_migrations()
    engine.dispose()


run()

"""How Alembic runs here: one transaction under a lock, for upgrades and for comparing with the tables."""

from collections.abc import Iterable

from alembic import context
from alembic.operations.ops import CreateTableOp, ExecuteSQLOp, MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, text

from sinas_server.backends.db.migrate import LOCK
from sinas_server.kernel.tables import Base


def add_statements(_: MigrationContext, revision: object, scripts: list[MigrationScript]) -> None:
    """What a table's `info` says must follow its creation, such as triggers, which Alembic does not know of."""
    for script in scripts:
        upgrade = script.upgrade_ops
        if upgrade is not None:
            upgrade.ops.extend(ExecuteSQLOp(sql) for sql in _after_create(upgrade.ops))


def _after_create(operations: Iterable[object]) -> list[str]:
    new = [operation for operation in operations if isinstance(operation, CreateTableOp)]
    created = {operation.table_name for operation in new}
    for operation in new:
        operation.info = {}  # or it is written into the migration too
    tables = [table for table in Base.metadata.sorted_tables if table.name in created]
    return [sql for table in tables for sql in table.info.get("after_create", ())]


def run() -> None:
    """Migrate, or compare, on a connection of its own."""
    engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            compare_server_default=False,
            process_revision_directives=add_statements,
        )
        context.run_migrations()


run()

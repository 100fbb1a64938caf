"""Which set of packages is in force, and which is being made."""

from uuid import UUID

from sqlalchemy import Float, bindparam, func, select, update

from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Database

QUEUE = "packages"
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 15.0, 3600.0
_COLUMNS = select(*PackageSetRow.__table__.columns)
_COMPLETED = (
    _COLUMNS.where(PackageSetRow.status == "COMPLETED").order_by(PackageSetRow.read_at.desc().nulls_last()).limit(1)
)
_READY = (
    _COLUMNS.where(PackageSetRow.status == "COMPLETED", PackageSetRow.ready_at.is_not(None))
    .order_by(PackageSetRow.read_at.desc())
    .limit(1)
)
_NEWEST = _COLUMNS.where(PackageSetRow.status != "SUPERSEDED").order_by(PackageSetRow.created_at.desc()).limit(1)


async def set_in_force(database: Database) -> PackageSetRow | None:
    """The set that workers are to use; None for none yet."""
    rows = await database.read(_COMPLETED)
    return PackageSetRow.loaded(rows[0]._asdict()) if rows else None


async def ready_set(database: Database) -> PackageSetRow | None:
    """The set that functions can use by now; None for none yet."""
    rows = await database.read(_READY)
    return PackageSetRow.loaded(rows[0]._asdict()) if rows else None


async def newest_set(database: Database) -> PackageSetRow | None:
    """The set that was asked for last, whatever became of it."""
    rows = await database.read(_NEWEST)
    return PackageSetRow.loaded(rows[0]._asdict()) if rows else None


async def try_again(runtime: Runtime, row: PackageSetRow, reason: str) -> None:
    """Give a set another chance later, each time later: an index that is out of reach may come back."""
    delay = min(FIRST_RETRY_SECONDS * 2**row.failures, LAST_RETRY_SECONDS)
    await runtime.database.rows(
        update(PackageSetRow)
        .where(PackageSetRow.id == row.id, PackageSetRow.attempt == row.attempt, PackageSetRow.ready_at.is_(None))
        .values(
            status="PENDING",
            message=f"{reason} (it is tried again after {delay:g} seconds)",
            failures=PackageSetRow.failures + 1,
            lease_until=None,
            run_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("later", type_=Float)),
        ),
        {"later": delay},
    )


async def note_ready(runtime: Runtime, set_id: UUID) -> None:
    """A worker uses this set."""
    await runtime.database.rows(
        update(PackageSetRow)
        .where(PackageSetRow.id == set_id, PackageSetRow.status == "COMPLETED", PackageSetRow.ready_at.is_(None))
        .values(ready_at=func.now(), message=None)
    )

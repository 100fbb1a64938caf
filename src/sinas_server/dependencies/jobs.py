"""Resolving what is approved to a lock: queued work of the scheduler."""

from dataclasses import dataclass, replace

import structlog
from sqlalchemy import and_, func, select, update

from sinas_server.backends.packages import PackageError, PackageTool, UnsatisfiableError
from sinas_server.dependencies.install import open_tool
from sinas_server.dependencies.kind import DEPENDENCY, is_allowed
from sinas_server.dependencies.sets import QUEUE, set_in_force, try_again
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.job import Claim, Job
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Filter
from sinas_server.kernel.unit import Db

log = structlog.get_logger()
NOT_ALLOWED = "not one of the ALLOWED_PACKAGES"


@dataclass(frozen=True)
class Wanted:
    """What a set is to hold, as pip requirements."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    """Approved by the platform itself: the set does without those that cannot be had."""
    left_out: dict[str, str]

    @property
    def all(self) -> tuple[str, ...]:
        """Both."""
        return (*self.required, *self.optional)


async def run(runtime: Runtime, claim: Claim[PackageSetRow]) -> None:
    """Lock the approved packages, or note why that cannot be done."""
    row = claim.row
    if not runtime.settings.allow_package_installation:
        await fail(runtime, claim, "ALLOW_PACKAGE_INSTALLATION is false")
        return
    async with runtime.database.unit() as db:
        wanted = await _read(db, row)
    if wanted is None:
        return
    in_force = await set_in_force(runtime.database)
    try:
        wanted, lock = await _locked(open_tool(runtime.settings), wanted, (in_force and in_force.lock) or "")
    except UnsatisfiableError as error:
        await fail(runtime, claim, str(error))
    except PackageError as error:
        log.warning("packages cannot be resolved now", reason=str(error))
        await try_again(runtime, row, str(error))
    else:
        await _finish(runtime, row, wanted, lock)


async def _read(db: Db, row: PackageSetRow) -> Wanted | None:
    """What is approved now; None if another set will hold it too, or the row is no longer ours."""
    # Waiting, it reads after us; read after us, it has what we were asked for.
    is_later = and_(PackageSetRow.status == "PENDING", PackageSetRow.run_at <= func.now())
    if row.read_at is not None:
        is_later |= PackageSetRow.read_at > row.read_at
    later = select(PackageSetRow.id).where(PackageSetRow.id != row.id, is_later)
    ours = PackageSetRow.id == row.id, PackageSetRow.attempt == row.attempt, PackageSetRow.status == "RUNNING"
    if await db.scalar(later.limit(1)) is not None:
        await db.execute(update(PackageSetRow).where(*ours).values(status="SUPERSEDED", lease_until=None))
        return None
    # The time is taken before the approvals are read: what is approved in between is in a set of a later time.
    noted = update(PackageSetRow).where(*ours)
    kept = await db.execute(noted.values(read_at=func.clock_timestamp(), message=None).returning(PackageSetRow.id))
    if kept.first() is None:
        return None
    allowed = db.settings.allowed_packages
    required, optional, left_out = [], [], {}
    for found in await store.find(db, SYSTEM, DEPENDENCY, Filter(active_only=True)):
        if not is_allowed(allowed, found.name):
            left_out[found.spec.requirement] = NOT_ALLOWED
        elif found.owner_id == SYSTEM.id:
            optional.append(found.spec.requirement)
        else:
            required.append(found.spec.requirement)
    wanted = Wanted(tuple(required), tuple(optional), left_out)
    await db.execute(noted.values(requirements=[*wanted.all, *left_out]))
    return wanted


async def _locked(tool: PackageTool, wanted: Wanted, preferred: str) -> tuple[Wanted, str]:
    """The lock, with what it is of in the end. Raises `PackageError`."""
    if not wanted.all:
        return wanted, ""
    try:
        return wanted, await tool.resolve(wanted.all, preferred)
    except PackageError as error:
        if not wanted.optional or not isinstance(error, UnsatisfiableError):
            raise
        without = {requirement: str(error) for requirement in wanted.optional}
        return await _locked(tool, replace(wanted, optional=(), left_out=wanted.left_out | without), preferred)


async def _finish(runtime: Runtime, row: PackageSetRow, wanted: Wanted, lock: str) -> None:
    await runtime.database.rows(
        update(PackageSetRow)
        .where(PackageSetRow.id == row.id, PackageSetRow.attempt == row.attempt, PackageSetRow.status == "RUNNING")
        .values(status="COMPLETED", lock=lock, left_out=wanted.left_out, lease_until=None)
    )


async def fail(runtime: Runtime, claim: Claim[PackageSetRow], error: str) -> None:
    """Store why there is no such set; the one before stays in force."""
    log.warning("packages cannot be resolved", reason=error)
    row = claim.row
    await runtime.database.rows(
        update(PackageSetRow)
        .where(PackageSetRow.id == row.id, PackageSetRow.attempt == row.attempt, PackageSetRow.status == "RUNNING")
        .values(status="FAILED", message=error, lease_until=None)
    )


PACKAGE_JOB = Job(queue=QUEUE, table=PackageSetRow, run=run, fail=fail)

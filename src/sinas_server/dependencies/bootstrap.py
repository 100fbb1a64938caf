"""The package that every installation approves by itself: the platform's public client."""

from contextlib import suppress

from sqlalchemy import func, select

from sinas_server.dependencies.kind import DEPENDENCY, is_allowed
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM, Caller
from sinas_server.kernel.errors import AlreadyExistsError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import AuditRow

CLIENT = "sinas"
"""Existing functions import it to call the platform. It is licensed apart from us, so it is only ever installed from
the package index, at run time."""


async def bootstrap(runtime: Runtime, _admin: Caller) -> None:
    """Approve the client where there has never been an approval; whoever withdraws it is not overruled."""
    settings = runtime.settings
    async with runtime.database.unit() as db:
        known = await db.scalar(
            select(func.count()).select_from(AuditRow).where(AuditRow.target_kind == DEPENDENCY.name)
        )
        allowed = settings.allow_package_installation and is_allowed(settings.allowed_packages, CLIENT)
        if known or not allowed:
            return
        spec = store.validated(DEPENDENCY, {"package_name": CLIENT})
        with suppress(AlreadyExistsError):  # by another process that starts
            await store.create(db, SYSTEM, DEPENDENCY, ("", CLIENT), spec)

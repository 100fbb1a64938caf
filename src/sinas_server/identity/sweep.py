"""Forgets credentials that are long over: login codes, sessions and the grants of executions."""

from datetime import timedelta

from sqlalchemy import delete, func, or_

from sinas_server.identity.tables import ExecutionGrantRow, OtpSessionRow, RefreshTokenRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime

KEPT = timedelta(days=1)
"""How long they stay after their end, for whoever looks into an incident."""


async def sweep(runtime: Runtime) -> None:
    """Delete what has been over for a day."""
    then = func.now() - KEPT
    over = or_(RefreshTokenRow.expires_at < then, RefreshTokenRow.revoked_at < then)
    async with runtime.database.unit() as db:
        await db.execute(delete(OtpSessionRow).where(OtpSessionRow.expires_at < then))
        await db.execute(delete(RefreshTokenRow).where(over))
        await db.execute(delete(ExecutionGrantRow).where(ExecutionGrantRow.expires_at < then))


SWEEP_LOOP = Loop("expired credentials", 3600, sweep)
"""Runs in the scheduler."""

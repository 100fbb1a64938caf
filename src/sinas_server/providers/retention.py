"""Forgetting calls of models that are older than `USAGE_RETENTION_DAYS`, but for what they came to."""

from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from sinas_server.providers.tables import EarlierUsageRow, UsageRow
from sinas_server.providers.usage import NOBODY

EVERY_SECONDS = 3600.0
AT_ONCE = 2000
"""Rows deleted in one statement, so that none holds locks for long."""


async def purge_usage(runtime: Runtime) -> None:
    """Delete what is old, the oldest first, and add it to what was forgotten before."""
    days = runtime.settings.usage_retention_days
    if not days:
        return
    old = (
        select(UsageRow.id)
        .where(UsageRow.at < now() - timedelta(days=days))
        .order_by(UsageRow.at)
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)
        .cte("old")  # which is asked once, however the rest is planned
    )
    gone = delete(UsageRow).where(UsageRow.id.in_(select(old.c.id))).returning(*UsageRow.__table__.columns).cte("gone")
    whose = [gone.c.user_id, func.coalesce(gone.c.api_key_id, NOBODY), func.coalesce(gone.c.agent_id, NOBODY)]
    tokens = func.sum(gone.c.prompt_tokens + gone.c.completion_tokens)
    cost = func.coalesce(func.sum(gone.c.cost_usd), 0)
    came_to = select(*whose, tokens, cost).group_by(*whose).order_by(*whose)  # so that no two processes deadlock
    key = ["user_id", "api_key_id", "agent_id"]
    added = insert(EarlierUsageRow).from_select([*key, "tokens", "cost_usd"], came_to)
    added = added.on_conflict_do_update(
        index_elements=key,
        set_={
            "tokens": EarlierUsageRow.tokens + added.excluded.tokens,
            "cost_usd": EarlierUsageRow.cost_usd + added.excluded.cost_usd,
        },
    )
    while await runtime.database.rows(added.returning(EarlierUsageRow.user_id)):
        pass


USAGE_LOOP = Loop("purge of old usage", EVERY_SECONDS, purge_usage)

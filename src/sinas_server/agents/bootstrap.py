"""The agent that a new Sinas starts with."""

from sqlalchemy import func, select

from sinas_server.agents.kind import AGENT
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow


async def bootstrap(runtime: Runtime, admin: Caller) -> None:
    """Create `default/default` where there has never been an agent."""
    async with runtime.database.unit() as db:
        known = await db.scalar(select(func.count()).select_from(ResourceRow).where(ResourceRow.kind == AGENT.name))
        if known:
            return
        fields = {
            "description": "A general assistant.",
            "system_prompt": "You are a helpful assistant.",
            "is_default": True,
        }
        await store.create(db, admin, AGENT, ("default", "default"), store.validated(AGENT, fields))

"""The agent that a new Sinas starts with."""

from sinas_server.agents.kind import AGENT
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.seed import seed


async def bootstrap(runtime: Runtime, admin: Caller) -> None:
    """Create `default/default`, once."""
    fields = {
        "description": "A general assistant.",
        "system_prompt": "You are a helpful assistant.",
        "is_default": True,
    }
    async with runtime.database.unit() as db:
        await seed(db, admin, AGENT, ("default", "default"), store.validated(AGENT, fields))

"""What becomes of the private secrets of a user who is deleted: they go, and pass to nobody."""

from uuid import UUID

from sqlalchemy import delete

from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db
from sinas_server.secrets.kind import SECRET


async def forget_secrets(db: Db, runtime: Runtime, user_id: UUID) -> None:
    """Delete the user's private secrets (`kernel.runtime.Departure`)."""
    await db.execute(delete(ResourceRow).where(ResourceRow.kind == SECRET.name, ResourceRow.scope == str(user_id)))

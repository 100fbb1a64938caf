"""What becomes of the chats of a user who is deleted: they go with everything in them."""

from uuid import UUID

from sqlalchemy import delete

from sinas_server.chats.chat import CHATS
from sinas_server.chats.tables import QUEUE, ChatRow
from sinas_server.kernel.job import cancel_topic
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import BatchRow
from sinas_server.kernel.unit import Db


async def delete_chats(db: Db, runtime: Runtime, user_id: UUID) -> None:
    """Delete the user's chats and their batches (`kernel.runtime.Departure`); a turn that is running stops."""
    await db.execute(delete(BatchRow).where(BatchRow.user_id == user_id, BatchRow.resource == CHATS.name))
    await db.execute(delete(ChatRow).where(ChatRow.user_id == user_id))
    db.after_commit(lambda: runtime.signals.signal(cancel_topic(QUEUE)))

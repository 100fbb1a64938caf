"""Deleting chats whose time is over, with everything in them."""

from sqlalchemy import delete, func

from sinas_server.chats.tables import QUEUE, ChatRow
from sinas_server.kernel.job import cancel_topic
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime

EVERY_SECONDS = 30.0


async def delete_expired(runtime: Runtime) -> None:
    """One look: chats, messages, turns and channels go; a turn that is running stops."""
    gone = await runtime.database.rows(
        delete(ChatRow).where(ChatRow.expires_at <= func.now()).returning(ChatRow.active_channel_id)
    )
    if any(row.active_channel_id is not None for row in gone):
        await runtime.signals.signal(cancel_topic(QUEUE))


EXPIRY_LOOP = Loop(name="delete expired chats", every_seconds=EVERY_SECONDS, step=delete_expired)

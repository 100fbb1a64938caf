"""Deleting chats whose time is over, with everything in them."""

from sqlalchemy import delete, func, select

from sinas_server.chats.ending import abandon_chats
from sinas_server.chats.once import KEPT
from sinas_server.chats.tables import ChatRow, TurnKeyRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime

EVERY_SECONDS = 30.0


async def delete_expired(runtime: Runtime) -> None:
    """One look: chats, messages, turns and channels go, and used keys; a turn that is running stops."""
    expired = ChatRow.expires_at <= func.now()
    async with runtime.database.unit() as db:
        await db.execute(delete(TurnKeyRow).where(TurnKeyRow.created_at < func.now() - KEPT))
        if await db.scalar(select(ChatRow.id).where(expired).limit(1)) is not None:
            await abandon_chats(db, runtime, expired)
            await db.execute(delete(ChatRow).where(expired))


EXPIRY_LOOP = Loop(name="delete expired chats", every_seconds=EVERY_SECONDS, step=delete_expired)

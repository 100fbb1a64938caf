"""Starting a turn once for an `Idempotency-Key`, however often and from how many sides it is asked for."""

import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Annotated, cast
from uuid import UUID

import orjson
from fastapi import Header
from pydantic import JsonValue
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from sinas_server.chats.chat import own_chat
from sinas_server.chats.start import How, Started
from sinas_server.chats.tables import ChatRow, TurnKeyRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

KEPT = timedelta(hours=24)
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key with the same body within 24 hours gives the turn of the first time.",
    ),
]


Begin = Callable[[Db, ChatRow], Awaitable[Started]]
"""Begins a turn in a chat, which is locked."""


class KeyUsedError(ConflictError):
    """The key was used for something else."""

    code = "idempotency_key_used"


async def start_once(
    db: Db, caller: Caller, key: str, asked: JsonValue, start: Callable[[], Awaitable[Started]]
) -> tuple[Started, bool]:
    """The turn that `start` begins in this transaction, or the one of the first time, and whether it is that.

    `asked`: what must be the same. Raises `KeyUsedError` where it is not. Who comes second waits for the first.
    """
    digest = hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()
    mine = (TurnKeyRow.user_id == caller.id, TurnKeyRow.key == key)
    await db.execute(delete(TurnKeyRow).where(*mine, TurnKeyRow.created_at < func.now() - KEPT))
    taking = insert(TurnKeyRow).values(user_id=caller.id, key=key, digest=digest).on_conflict_do_nothing()
    if (await db.execute(taking.returning(TurnKeyRow.key))).first() is None:
        earlier = await db.scalar(select(TurnKeyRow).where(*mine))
        if earlier is None or not (earlier.turn_id and earlier.chat_id and earlier.channel_id and earlier.how):
            raise ConflictError("the first request with this Idempotency-Key has just been undone; try again")
        if earlier.digest != digest:
            raise KeyUsedError(f"Idempotency-Key '{key}' was used before with another request")
        return Started(earlier.chat_id, earlier.turn_id, earlier.channel_id, cast(How, earlier.how)), True
    started = await start()
    row = await db.get_one(TurnKeyRow, (caller.id, key))
    row.chat_id, row.turn_id, row.channel_id = started.chat_id, started.turn_id, started.channel_id
    row.how = started.how
    await db.flush()
    return started, False


async def begin_in(
    runtime: Runtime, caller: Caller, chat_id: UUID, key: str | None, asked: JsonValue, begin: Begin
) -> tuple[Started, bool]:
    """A turn in a chat of the caller, and whether it was begun before with the same key. Raises 404."""
    async with runtime.database.unit() as db:
        chat = await own_chat(db, caller, chat_id)
        start = partial(begin, db, chat)
        return (await start(), False) if key is None else await start_once(db, caller, key, asked, start)

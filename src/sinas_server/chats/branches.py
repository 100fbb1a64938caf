"""The branches of a chat over HTTP: listing them, and choosing the one that goes on."""

from datetime import datetime
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import select

from sinas_server.chats.chat import find_chat
from sinas_server.chats.fork import activate, branch_with, forks_of, known_branch, message_in
from sinas_server.chats.path import last_of
from sinas_server.chats.routes import ChatId
from sinas_server.chats.tables import ChatRow, MessageRow, TurnRow
from sinas_server.chats.talk import IS_OPEN
from sinas_server.chats.views import ChatResponse
from sinas_server.kernel.errors import ConflictError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, new_router
from sinas_server.kernel.unit import Db

OPEN_TURN = (
    "The agent is still answering, or waits for you, on the active branch: wait, answer it, or stop it with "
    "POST /chats/{chat_id}/stop"
)


class BranchResponse(BaseModel):
    """A branch of a chat."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    branch: int = Field(description="Its number in the chat, counted from 0.")
    active: bool = Field(description="Whether it is the one that is shown and goes on.")
    parent_branch: int | None = Field(description="The branch it comes from.")
    after_message_id: UUID | None = Field(description="The message it follows; null if it begins the conversation.")
    first_message_id: UUID | None = Field(description="Its first own message; null while there is none.")
    last_message_id: UUID | None = Field(description="The message it ends with now.")
    created_at: datetime = Field(description="When it began.")


class BranchChoice(BaseModel):
    """A branch, by its number or by a message on it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    branch: int | None = Field(default=None, ge=0, le=MAX_INT, description="Its number.")
    message_id: UUID | None = Field(
        default=None, description="A message on it; of several branches with this message, the one last used."
    )

    @model_validator(mode="after")
    def _has_one(self) -> "BranchChoice":
        if (self.branch is None) == (self.message_id is None):
            raise ValueError("needs either branch or message_id")
        return self


async def _list(chat_id: ChatId, db: CurrentDb, caller: CurrentCaller) -> list[BranchResponse]:
    """In the order in which they began. Read one with `GET /chats/{chat_id}/messages?branch=`."""
    chat = await find_chat(db, caller, chat_id, "read")
    begun = [
        BranchResponse(
            branch=fork.number,
            active=fork.number == chat.branch,
            parent_branch=fork.parent,
            after_message_id=fork.after,
            first_message_id=fork.first,
            last_message_id=fork.last or fork.after,
            created_at=fork.created_at,
        )
        for fork in await forks_of(db, chat.id)
    ]
    return [await _first(db, chat), *begun]


async def _first(db: Db, chat: ChatRow) -> BranchResponse:
    own = select(MessageRow.id).where(MessageRow.chat_id == chat.id, MessageRow.branch == 0)
    first, last = await db.scalar(own.order_by(MessageRow.seq).limit(1)), await last_of(db, chat.id, 0)
    return BranchResponse(
        branch=0,
        active=chat.branch == 0,
        parent_branch=None,
        after_message_id=None,
        first_message_id=first,
        last_message_id=None if last is None else last.id,
        created_at=chat.created_at,
    )


async def _choose(chat_id: ChatId, body: BranchChoice, db: CurrentDb, caller: CurrentCaller) -> ChatResponse:
    """The chat shows it from now on, and the next message goes on there."""
    chat = await find_chat(db, caller, chat_id, "update", lock=True)
    if body.message_id is not None:
        number = await branch_with(db, chat, await message_in(db, chat, body.message_id))
    else:
        number = await known_branch(db, chat, body.branch or 0)
    if number != chat.branch:
        if await db.scalar(select(TurnRow.id).where(TurnRow.chat_id == chat.id, IS_OPEN).limit(1)) is not None:
            raise ConflictError(OPEN_TURN)
        await activate(db, chat, number)
    return ChatResponse.of(chat)


def _branches_router() -> APIRouter:
    router = new_router("", "branches")
    router.get("/chats/{chat_id}/branches", summary="List the branches of a chat", name="list")(_list)
    router.put("/chats/{chat_id}/branch", summary="Choose the branch that goes on", name="choose")(_choose)
    return router


branches_router = _branches_router()

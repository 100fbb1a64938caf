"""Chats themselves: creating, finding, listing and showing them."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from pydantic import BaseModel, Field, JsonValue
from sqlalchemy import ColumnElement, and_, func, insert, or_, select, tuple_

from sinas_server.agents.kind import AGENT, AgentSpec
from sinas_server.chats.tables import ChatRow
from sinas_server.kernel import store
from sinas_server.kernel.access import AccessResource, Caller
from sinas_server.kernel.errors import ForbiddenError, InvalidError, NotFoundError
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from sinas_server.kit.schema import violations

CHATS = AccessResource(
    name="chats",
    description="Conversations with agents.",
    actions=("read", "update", "delete"),
    users_may=("read:own", "update:own", "delete:own"),
)
MAX_LIST = 1000
"""The most chats a list without a limit shows."""


@dataclass(frozen=True)
class Wanted:
    """What a new chat is to be."""

    input: dict[str, JsonValue]
    title: str | None = None
    session_key: str | None = None
    expires_in: int | None = None
    job_timeout: int | None = None
    keep_alive: bool | None = None
    archived: bool = False
    id: UUID | None = None
    """Its id, where it follows from what asks for it."""
    parent_chat_id: UUID | None = None
    """The chat whose agent asks for it; it ends with that one."""
    test_id: UUID | None = None
    """The test that it is part of."""
    always_allowed: tuple[str, ...] = ()
    """Tools (`toolset:target`) that the user has approved for always there."""


async def create_chat(db: Db, caller: Caller, agent: Resource[AgentSpec], wanted: Wanted) -> ChatRow:
    """A new chat of the caller with an agent he may chat with. Raises `InvalidError` for an input it does not take."""
    values = _values(caller, agent, wanted)
    return (await db.execute(insert(ChatRow).values(**values).returning(ChatRow))).scalar_one()


async def create_chats(db: Db, caller: Caller, agent: Resource[AgentSpec], wanted: Sequence[Wanted]) -> list[ChatRow]:
    """The same for many at once, in their order."""
    ids = [each.id or uuid4() for each in wanted]
    values = [{**_values(caller, agent, each), "id": new_id} for each, new_id in zip(wanted, ids, strict=True)]
    made = {chat.id: chat for chat in await db.scalars(insert(ChatRow).returning(ChatRow), values)}
    return [made[new_id] for new_id in ids]


def _values(caller: Caller, agent: Resource[AgentSpec], wanted: Wanted) -> dict[str, object]:
    found = violations(agent.spec.input_schema, wanted.input)
    if found:
        raise InvalidError([(("body", "input", *problem.path), problem.message) for problem in found], "json_schema")
    expires = now() + timedelta(seconds=wanted.expires_in) if wanted.expires_in else None
    return {
        "user_id": caller.id,
        "user_email": caller.email,
        "agent_id": agent.id,
        "agent_namespace": agent.namespace,
        "agent_name": agent.name,
        "title": (wanted.title or "").strip() or f"Chat with {agent.ref}",
        "session_key": wanted.session_key,
        "input": wanted.input,
        "job_timeout": wanted.job_timeout,
        "keep_alive": agent.spec.default_keep_alive if wanted.keep_alive is None else wanted.keep_alive,
        "expires_at": expires,
        "archived": wanted.archived,
        "parent_chat_id": wanted.parent_chat_id,
        "test_id": wanted.test_id,
        "always_allowed": list(wanted.always_allowed),
        "id": wanted.id or uuid4(),
    }


async def chat_agent(db: Db, caller: Caller, namespace: str, name: str) -> Resource[AgentSpec]:
    """An agent the caller may chat with. Raises 404, 403."""
    return await store.use(db, caller, AGENT, namespace, name, "chat")


def alive() -> ColumnElement[bool]:
    """Chats that have not expired; those that have are deleted soon."""
    return or_(ChatRow.expires_at.is_(None), ChatRow.expires_at > func.now())


async def find_chat(db: Db, caller: Caller, chat_id: UUID, action: str, *, lock: bool = False) -> ChatRow:
    """A chat for reading, updating or deleting. Raises 404 for those of others, 403 for a missing permission.

    Who may chat with an agent may see and steer the own conversation with it.
    """
    query = select(ChatRow).where(ChatRow.id == chat_id, alive())
    chat = await db.scalar(query.with_for_update() if lock else query)
    if chat is None:
        raise NotFoundError("chat not found")
    if caller.allows(CHATS.name, action, chat.user_id):
        return chat
    if chat.user_id != caller.id:
        raise NotFoundError("chat not found")
    may_chat = caller.allows(AGENT.plural, "chat", None, chat.agent_namespace, chat.agent_name)
    if action != "delete" and may_chat and caller.is_trusted(CHATS.name, action):
        return chat
    raise ForbiddenError(f"Not authorized: this needs sinas.chats.{action}:own")


def may_talk(caller: Caller, user_id: UUID) -> bool:
    """Whether a chat of this user is the caller's to talk in; not for code of somebody who may not change it."""
    return user_id == caller.id and caller.is_trusted(CHATS.name, "update")


async def own_chat(db: Db, caller: Caller, chat_id: UUID, *, lock: bool = True) -> ChatRow:
    """A chat of the caller, locked, for talking in it. Raises 404."""
    query = select(ChatRow).where(ChatRow.id == chat_id, alive())
    chat = await db.scalar(query.with_for_update() if lock else query)
    if chat is None or not may_talk(caller, chat.user_id):
        raise NotFoundError("chat not found")
    return chat


class ChatFilter(BaseModel):
    """Which chats a list shows."""

    include_archived: bool = Field(default=False, description="Show archived ones too.")
    parent_chat_id: UUID | None = Field(
        default=None,
        description="Those that the agent of this chat has begun with other agents, which else are hidden.",
    )
    q: str | None = Field(default=None, max_length=500, description="Part of the title, in any case.")
    limit: int | None = Field(default=None, ge=1, le=200, description="The most chats of a page.")
    cursor: str | None = Field(default=None, max_length=500, description="Go on after a page: its `X-Next-Cursor`.")


@dataclass(frozen=True)
class ChatList:
    """A page of chats, and how to go on."""

    chats: list[ChatRow]
    next_cursor: str | None
    truncated: bool


async def list_chats(db: Db, caller: Caller, only: ChatFilter) -> ChatList:
    """The caller's chats, the most recently updated first."""
    if not caller.allows(CHATS.name, "read", caller.id):
        raise ForbiddenError("Not authorized: this needs sinas.chats.read:own")
    query = select(ChatRow).where(ChatRow.user_id == caller.id, alive())
    query = query.where(ChatRow.parent_chat_id.is_not_distinct_from(only.parent_chat_id))
    if not only.include_archived:
        query = query.where(ChatRow.archived.is_(False))
    if only.q:
        escaped = only.q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        query = query.where(ChatRow.title.ilike(f"%{escaped}%", escape="\\"))
    if only.cursor is not None:
        query = query.where(_after(only.cursor))
    paged = only.limit is not None or only.cursor is not None
    most = only.limit or (100 if paged else MAX_LIST)
    query = query.order_by(ChatRow.updated_at.desc(), ChatRow.id.desc()).limit(most + 1)
    rows = list(await db.scalars(query))
    more, chats = len(rows) > most, rows[:most]
    return ChatList(chats, _cursor(chats[-1]) if more and paged else None, more and not paged)


def _cursor(chat: ChatRow) -> str:
    return base64.urlsafe_b64encode(f"{chat.updated_at.isoformat()} {chat.id}".encode()).decode()


def _after(cursor: str) -> ColumnElement[bool]:
    try:
        at, _, chat_id = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        place = (datetime.fromisoformat(at), UUID(chat_id))
        if place[0].tzinfo is None:
            raise ValueError("a cursor's time has a zone")
    except (ValueError, binascii.Error) as error:
        raise InvalidError([(("query", "cursor"), "must be what X-Next-Cursor gave")]) from error
    return and_(tuple_(ChatRow.updated_at, ChatRow.id) < tuple_(*place))

"""The messages of many chats at once: searching them, and counting what goes on."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, Subquery, func, literal, or_, select, text
from sqlalchemy.exc import DBAPIError

from sinas_server.chats.chat import CHATS, alive
from sinas_server.chats.tables import ChatRow, MessageRow
from sinas_server.chats.views import MessageResponse, message_fields
from sinas_server.kernel.access import Caller, OwnedColumns
from sinas_server.kernel.errors import BadRequestError, ForbiddenError
from sinas_server.kernel.http import MAX_INT, CurrentCaller, CurrentDb, new_router
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from sinas_server.settings import Settings

REACH = 20_000
"""The most messages a request looks at, the newest first: a search costs the same however many there are."""
PATIENCE = text("SET LOCAL statement_timeout = '5s'")
TOO_SLOW = "this takes too long here: ask for one agent or role, or for fewer days"
QUERY_CANCELED = "57014"
MOST_AGENTS = 100
SLOW: dict[int | str, dict[str, object]] = {400: {"description": "It would take too long; the message says why."}}


class _Answer(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class MessageChat(_Answer):
    """The chat of a message."""

    id: UUID = Field(description="Its id.")
    title: str = Field(description="Its title.")
    agent_namespace: str = Field(description="The agent's namespace.")
    agent_name: str = Field(description="The agent's name.")


class MessageUser(_Answer):
    """Whose chat it is."""

    id: UUID = Field(description="The user's id.")
    email: str = Field(description="The user's address.")


class FoundMessage(MessageResponse):
    """A message, and where it was said."""

    chat: MessageChat = Field(description="Its chat.")
    user: MessageUser = Field(description="The user who has that chat.")


class FoundMessages(_Answer):
    """A page of messages."""

    messages: list[FoundMessage] = Field(description="The newest first.")
    total: int = Field(description=f"How many match, among the newest {REACH}.")
    limit: int = Field(description="As asked.")
    offset: int = Field(description="As asked.")


class MessageFilter(BaseModel):
    """Which messages."""

    agent: str | None = Field(
        default=None, max_length=600, description="Only with this agent: `namespace/name`, or a name in any namespace."
    )
    role: Literal["", "user", "assistant", "tool", "system"] | None = Field(
        default=None, description="Only of this role."
    )
    search: str | None = Field(default=None, max_length=500, description="Part of the text, in any case.")
    limit: int = Field(default=50, ge=1, le=1000, description="The most messages of a page.")
    offset: int = Field(default=0, ge=0, le=MAX_INT, description="How many to leave out.")


class AgentUse(_Answer):
    """What was said with one agent."""

    agent: str = Field(description="`namespace/name`.")
    count: int = Field(description="How many messages.")


class MessageStats(_Answer):
    """What was said in some days."""

    total_messages: int = Field(description="How many messages.")
    tool_calls: int = Field(description="How many calls of tools the agents asked for.")
    activity_by_day: dict[str, int] = Field(description="Messages by day (`YYYY-MM-DD`, UTC), the oldest first.")
    agent_usage: list[AgentUse] = Field(description=f"Messages by agent, the most first; up to {MOST_AGENTS}.")
    role_distribution: dict[str, int] = Field(description="Messages by role.")


def _readable(caller: Caller) -> list[ColumnElement[bool]]:
    """What the caller may read of messages joined with their chats. Raises `ForbiddenError` for nothing at all."""
    if not caller.allows(CHATS.name, "read", caller.id):
        raise ForbiddenError("Not authorized: this needs sinas.chats.read:own")
    return [caller.visible(CHATS.name, "read", OwnedColumns((), ChatRow.user_id)), alive()]


def _newest(caller: Caller, only: MessageFilter) -> Subquery:
    """The newest messages that the filter lets through, without the search."""
    where = _readable(caller)
    if only.agent:
        namespace, slash, name = only.agent.rpartition("/")
        where += [ChatRow.agent_name == name, *([ChatRow.agent_namespace == namespace] if slash else [])]
    if only.role:
        where.append(MessageRow.role == only.role)
    query = select(MessageRow.id).join(ChatRow, ChatRow.id == MessageRow.chat_id).where(*where)
    return query.order_by(MessageRow.created_at.desc(), MessageRow.seq.desc()).limit(REACH).subquery("newest")


def _says(wanted: str) -> ColumnElement[bool]:
    """Whether a message's text has this part. Of multimodal content the texts count, not what is attached."""
    part = func.json_array_elements(MessageRow.parts).column_valued("part")
    in_part = func.json_extract_path_text(part, "text").icontains(wanted, autoescape=True)
    in_parts = select(literal(1)).where(in_part).exists()
    return or_(MessageRow.content.icontains(wanted, autoescape=True), MessageRow.parts.is_not(None) & in_parts)


@contextmanager
def _in_time() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == QUERY_CANCELED:
            raise BadRequestError(TOO_SLOW) from error
        raise


async def _found(db: Db, newest: Subquery, only: MessageFilter) -> tuple[list[FoundMessage], int, bool]:
    """A page, how many match, and whether there are more than were looked at."""
    looked_at = (await db.execute(select(func.count()).select_from(newest))).scalar_one()
    matching = [_says(only.search)] if only.search else []
    hits = select(MessageRow.id).join(newest, newest.c.id == MessageRow.id).where(*matching)
    total = looked_at
    if only.search:
        total = (await db.execute(select(func.count()).select_from(hits.subquery()))).scalar_one()
    page = (
        select(MessageRow, ChatRow)
        .join(ChatRow, ChatRow.id == MessageRow.chat_id)
        .where(MessageRow.id.in_(hits))
        .order_by(MessageRow.created_at.desc(), MessageRow.seq.desc())
        .limit(only.limit)
        .offset(only.offset)
    )
    return [_shown(*row, db.settings) for row in await db.execute(page)], total, looked_at == REACH


def _shown(message: MessageRow, chat: ChatRow, settings: Settings) -> FoundMessage:
    return FoundMessage(
        **message_fields(message, settings),
        chat=MessageChat(
            id=chat.id, title=chat.title, agent_namespace=chat.agent_namespace, agent_name=chat.agent_name
        ),
        user=MessageUser(id=chat.user_id, email=chat.user_email),
    )


async def _list(
    db: CurrentDb, caller: CurrentCaller, response: Response, only: Annotated[MessageFilter, Query()]
) -> FoundMessages:
    """Those of one's own chats, or with `sinas.chats.read:all` of everyone's. If there are more than are looked at,
    `X-Truncated: true` says so; a filter by agent or role reaches further back."""
    newest = _newest(caller, only)
    await db.execute(PATIENCE)
    with _in_time():
        messages, total, truncated = await _found(db, newest, only)
    if truncated:
        response.headers["X-Truncated"] = "true"
    return FoundMessages(messages=messages, total=total, limit=only.limit, offset=only.offset)


Days = Annotated[int, Query(ge=1, le=90, description="How many days, today included.")]


async def _stats(db: CurrentDb, caller: CurrentCaller, days: Days = 7) -> MessageStats:
    """Of one's own chats, or with `sinas.chats.read:all` of everyone's."""
    where = _readable(caller)
    first = now().date() - timedelta(days=days - 1)
    day = func.to_char(func.timezone("UTC", MessageRow.created_at), "YYYY-MM-DD").label("day")
    calls = func.coalesce(func.sum(func.json_array_length(MessageRow.tool_calls)), 0).label("calls")
    keys = (day, MessageRow.role, ChatRow.agent_namespace, ChatRow.agent_name)
    query = (
        select(*keys, func.count().label("messages"), calls)
        .join(ChatRow, ChatRow.id == MessageRow.chat_id)
        .where(*where, MessageRow.created_at >= datetime.combine(first, time(), UTC))
        .group_by("day", *keys[1:])
    )
    await db.execute(PATIENCE)
    with _in_time():
        rows = (await db.execute(query)).all()
    return _summed(rows, [(first + timedelta(days=offset)).isoformat() for offset in range(days)])


def _summed(rows: Sequence[Row[*tuple[object, ...]]], dates: list[str]) -> MessageStats:
    by_day, by_agent, by_role = Counter(dict.fromkeys(dates, 0)), Counter[str](), Counter[str]()
    for row in rows:
        by_day[row.day] += row.messages
        by_agent[f"{row.agent_namespace}/{row.agent_name}"] += row.messages
        by_role[row.role] += row.messages
    agents = sorted(by_agent.items(), key=lambda item: (-item[1], item[0]))[:MOST_AGENTS]
    return MessageStats(
        total_messages=by_role.total(),
        tool_calls=sum(row.calls for row in rows),
        activity_by_day=dict(by_day),
        agent_usage=[AgentUse(agent=agent, count=count) for agent, count in agents],
        role_distribution=dict(by_role),
    )


def _messages_router() -> APIRouter:
    router = new_router("/messages", "messages")
    router.get("", summary="Search the messages of all chats one may read", name="list", responses=SLOW)(_list)
    router.get("/stats", summary="Count what was said in the last days", name="stats", responses=SLOW)(_stats)
    return router


messages_router = _messages_router()

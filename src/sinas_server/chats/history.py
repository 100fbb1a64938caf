"""What of a conversation the model is given again: the newest messages, never a call without its results.

Where older messages go, many go at once, since providers have to read a request anew that begins otherwise than the one
before. Which is the first to stay is told by nothing but the messages: the one with the least id among those it may be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import cast
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Integer, Uuid, and_, bindparam, func, or_, select

from sinas_server.backends.db.direct import constant
from sinas_server.backends.llm import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from sinas_server.chats.content import for_model
from sinas_server.chats.path import newest_of
from sinas_server.chats.tables import MessageRow, TurnRow
from sinas_server.kernel.unit import Database


@dataclass(frozen=True)
class Said:
    """A message as history needs it."""

    seq: int
    id: UUID
    role: str
    content: str | None
    parts: list[JsonValue] | None
    tool_calls: list[JsonValue] | None
    tool_call_id: str | None
    name: str | None
    native: JsonValue
    step: int | None
    """The step of its turn; none for what a turn answers."""

    @property
    def begins(self) -> bool:
        """Whether an exchange begins with it: not with what was injected into a turn."""
        return self.role == "user" and self.step is None


_COLUMNS = [field.name for field in fields(Said)]
_CHAT_ID = bindparam("of_chat", type_=Uuid)
_BRANCH, _MOST = bindparam("of_branch", type_=Integer), bindparam("most", type_=Integer)
_NEWEST = newest_of(_CHAT_ID, _BRANCH, _MOST).cte("newest")
_ASKED = select(*(MessageRow.__table__.columns[name] for name in _COLUMNS)).where(
    or_(
        MessageRow.id == bindparam("asked", type_=Uuid),
        and_(MessageRow.turn_id == bindparam("of_turn", type_=Uuid), MessageRow.role == constant("user")),
    ),
    MessageRow.seq < select(func.min(_NEWEST.c.seq)).scalar_subquery(),
)
_HISTORY = select(*(_NEWEST.c[name] for name in _COLUMNS)).union_all(_ASKED)


async def read_newest(database: Database, turn: TurnRow, most: int) -> list[Said]:
    """The newest `most` messages on the way to a turn, before them perhaps what users said in it."""
    values = {"of_chat": turn.chat_id, "of_branch": turn.branch, "asked": turn.message_id, "of_turn": turn.id}
    found = await database.lookup(_HISTORY, {**values, "most": most})
    return sorted((Said(*row) for row in found), key=attrgetter("seq"))


async def read_history(database: Database, turn: TurnRow, most: int) -> list[Message]:
    """The newest `most` messages on the way to a turn that make sense without those before, and what it answers."""
    depth = most + 1
    while True:
        rows = await read_newest(database, turn, depth)
        kept = whole(rows, turn.message_id, most)
        if kept[-1:] == rows[-1:] or len(rows) < depth:
            return list(map(as_message, kept))
        depth *= 4  # the last step alone has more results


def whole(rows: Sequence[Said], asked: UUID, most: int) -> list[Said]:
    """The newest rows, at most so many, from what a user said on; failing that what users said in the turn, and its
    last steps, at least one.

    `rows`: the newest messages, before them perhaps what users said in the turn, first the one with the id `asked`.
    """
    newest = list(rows[-most:])
    users = [i for i, row in enumerate(newest) if row.begins]
    if users:
        last = next((i for i in users if newest[i].id == asked), users[-1])
        near = [i for i in users if i < users[0] + most // 4 and i <= last] if len(rows) > most else []
        return newest[min(near, key=lambda i: newest[i].id, default=users[0]) :]
    answers = [i for i, row in enumerate(rows) if row.role == "assistant"]
    steps = [i for i in range(len(rows) - len(newest), len(rows)) if rows[i].role != "tool"] or answers[-1:]
    start = min(steps, default=len(rows))
    first = next((i for i, row in enumerate(rows) if row.id == asked), start)
    return [row for row in rows[first:start] if row.role == "user"] + list(rows[start:])


def as_message(said: Said) -> Message:
    """The message as the model is given it."""
    if said.role == "tool":
        return ToolMessage(said.tool_call_id or "", said.name or "", said.content or "")
    if said.role == "assistant":
        return AssistantMessage(said.content or "", calls_of(said), said.native)
    return UserMessage(for_model(said.content, said.parts), injected=not said.begins)


def calls_of(said: Said) -> tuple[ToolCall, ...]:
    """What an answer calls."""
    return tuple(map(_call, cast(list[dict[str, dict[str, str]]], said.tool_calls or [])))


def _call(call: dict[str, dict[str, str]]) -> ToolCall:
    return ToolCall(str(call["id"]), call["function"]["name"], call["function"]["arguments"])

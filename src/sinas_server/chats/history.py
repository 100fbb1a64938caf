"""What of a conversation the model is given again: the newest messages, never a call without its results."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Integer, Uuid, and_, bindparam, or_, select

from sinas_server.backends.llm import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from sinas_server.chats.content import for_model
from sinas_server.chats.tables import MessageRow
from sinas_server.kernel.unit import Database


@dataclass(frozen=True)
class Said:
    """A message as history needs it."""

    seq: int
    turn_id: UUID | None
    role: str
    content: str | None
    parts: list[JsonValue] | None
    tool_calls: list[JsonValue] | None
    tool_call_id: str | None
    name: str | None
    native: JsonValue


_CHAT_ID, _TURN_ID = bindparam("of_chat", type_=Uuid), bindparam("of_turn", type_=Uuid)
_NEWEST = (
    select(MessageRow.seq)
    .where(MessageRow.chat_id == _CHAT_ID)
    .order_by(MessageRow.seq.desc())
    .limit(bindparam("most", type_=Integer))
)
_HISTORY = (
    select(*(MessageRow.__table__.columns[field.name] for field in fields(Said)))
    .where(
        MessageRow.chat_id == _CHAT_ID,
        or_(MessageRow.seq.in_(_NEWEST), and_(MessageRow.turn_id == _TURN_ID, MessageRow.role == "user")),
    )
    .order_by(MessageRow.seq)
)


async def read_history(database: Database, chat_id: UUID, turn_id: UUID, most: int) -> list[Message]:
    """The newest `most` messages of a chat that make sense without those before them, and what this turn answers."""
    rows = await database.lookup(_HISTORY, {"of_chat": chat_id, "of_turn": turn_id, "most": most})
    return [_message(said) for said in whole([Said(*row) for row in rows], turn_id, most)]


def whole(rows: Sequence[Said], turn_id: UUID, most: int) -> list[Said]:
    """The rows from the first user message among the newest `most` on; failing that the turn's own and its last steps.

    `rows`: the newest `most` messages, before them perhaps the user message of the turn.
    """
    newest = list(rows[-most:])
    first = next((i for i, row in enumerate(newest) if row.role == "user"), None)
    if first is not None:
        return newest[first:]
    asked = [row for row in rows if row.role == "user" and row.turn_id == turn_id]
    start = next((i for i, row in enumerate(newest) if row.role != "tool"), len(newest))
    return asked + newest[start:]


def _message(said: Said) -> Message:
    if said.role == "tool":
        return ToolMessage(said.tool_call_id or "", said.name or "", said.content or "")
    if said.role == "assistant":
        calls = cast(list[dict[str, dict[str, str]]], said.tool_calls or [])
        return AssistantMessage(said.content or "", tuple(map(_call, calls)), said.native)
    return UserMessage(for_model(said.content, said.parts))


def _call(call: dict[str, dict[str, str]]) -> ToolCall:
    return ToolCall(str(call["id"]), call["function"]["name"], call["function"]["arguments"])

"""The statements that write the common steps of a turn: each does all of it at once, or nothing if the turn was lost.

Their JSON is text, so that they are the same to `Database.direct` and inside a unit of work; and no parameter is named
like a column, which SQLAlchemy would set.
"""

import json
from collections.abc import Mapping, Sequence

from sqlalchemy import (
    CTE,
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Executable,
    Float,
    Integer,
    SQLColumnExpression,
    String,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from sinas_server.backends.llm import Answer as ModelAnswer
from sinas_server.chats.events import Call
from sinas_server.chats.queued import IS_TOLD, ended_unless_told
from sinas_server.chats.record import hash_of
from sinas_server.chats.tables import CallStatus, ChatRow, MessageRow, ToolCallRow, TurnRow
from sinas_server.providers.usage import recording


def _text(name: str) -> ColumnElement[str]:
    return bindparam(name, type_=Text)


def _json(name: str) -> ColumnElement[object]:
    return cast(_text(name), JSON)


def _number(name: str) -> ColumnElement[int]:
    return bindparam(name, type_=Integer)


def as_json(value: object) -> str | None:
    """A value for a parameter that is JSON; null is no value. Not by orjson: schemas may hold integers of any size."""
    return None if value is None else json.dumps(value)


def _mine(values: Mapping[str, object]) -> CTE:
    """Locks the turn and notes progress, if it is still the worker's: gives it as it is then, or nothing.

    Parameters: `my_turn`, `my_attempt`, `my_seconds` (of work), `my_usage`.
    """
    return (
        update(TurnRow)
        .where(
            TurnRow.id == bindparam("my_turn", type_=Uuid),
            TurnRow.attempt == _number("my_attempt"),
            TurnRow.status == literal_column("'RUNNING'"),
        )
        .values(
            worked_seconds=bindparam("my_seconds", type_=Float),
            progress_attempt=_number("my_attempt"),
            usage=_json("my_usage"),
            **values,
        )
        .returning(TurnRow.id, TurnRow.chat_id, TurnRow.branch, TurnRow.step, IS_TOLD.label("is_told"))
        .cte("mine")
    )


def _said(mine: CTE) -> CTE:
    """Adds an answer of the model to the conversation.

    Parameters: `my_step`, `said_content`, `said_calls`, `said_native`, `said_usage`, `said_offset`, `said_runs`.
    """
    values: dict[str, SQLColumnExpression[object]] = {
        "chat_id": mine.c.chat_id,
        "branch": mine.c.branch,
        "turn_id": mine.c.id,
        "step": _number("my_step"),
        "role": literal_column("'assistant'", String),
        "content": _text("said_content"),
        "tool_calls": _json("said_calls"),
        "native": _json("said_native"),
        "usage": _json("said_usage"),
        "stream_offset": bindparam("said_offset", type_=BigInteger),
        "runs": _json("said_runs"),
    }
    return insert(MessageRow).from_select(list(values), select(*values.values())).returning(MessageRow.id).cte("said")


_CALL_FIELDS = (
    *("index", "tool_call_id", "provider_call_id", "name", "arguments", "arguments_hash", "tool", "description"),
    *("status", "requires_approval", "waits_for", "started_on"),
)


def _calls(mine: CTE) -> CTE:
    """Adds the calls of an answer. Parameter: `the_calls`, see `called`."""
    columns = [column(name, ToolCallRow.__table__.columns[name].type) for name in _CALL_FIELDS]
    calls = (
        func.json_to_recordset(_json("the_calls")).table_valued(*columns, name="call").render_derived(with_types=True)
    )
    return (
        insert(ToolCallRow)
        .from_select(
            ["turn_id", "step", "chat_id", *_CALL_FIELDS],
            select(mine.c.id, _number("my_step"), mine.c.chat_id, *calls.c).select_from(
                mine.join(calls, literal_column("true"))
            ),
        )
        .returning(ToolCallRow.index)
        .cte("called")
    )


def _touched(mine: CTE, *, only_if: ColumnElement[bool] | None = None, **values: SQLColumnExpression[object]) -> CTE:
    """Notes that something was said in the chat."""
    at = func.clock_timestamp()
    conditions = [ChatRow.id == mine.c.chat_id, *([] if only_if is None else [only_if])]
    return (
        update(ChatRow)
        .where(*conditions)
        .values(updated_at=at, last_message_at=at, **values)
        .returning(ChatRow.id)
        .cte("touched")
    )


def _answered() -> Executable:
    mine = _mine({})
    counted = func.coalesce(_json("the_count"), ChatRow.counted)
    written = (recording(mine).cte("spent"), _said(mine), _calls(mine), _touched(mine, counted=counted))
    return select(mine.c.id).add_cte(*written)


def _concluded() -> Executable:
    mine = _mine(ended_unless_told(_number("my_step")))
    return select(mine.c.is_told).add_cte(recording(mine).cte("spent"), _said(mine))


def _finished() -> Executable:
    """Beside the result of a call, if it is the last of its step: the results, and the next step, unless told more."""
    last = and_(bindparam("is_last", type_=Boolean), ~IS_TOLD)
    mine = _mine({"step": case((last, TurnRow.step + 1), else_=TurnRow.step)})
    step = _number("my_step")
    known = ToolCallRow
    values = {
        "status": literal_column(f"'{CallStatus.DONE}'"),
        "result": _text("the_result"),
        "whole_result": _text("the_whole"),
        "is_error": bindparam("is_error_now", type_=Boolean),
        "finished_on": bindparam("the_channel", type_=Uuid),
        "finish_order": _number("the_order"),
    }
    done = (
        update(known)
        .where(known.turn_id == mine.c.id, known.step == step, known.index == _number("the_index"))
        .where(known.status != literal_column(f"'{CallStatus.DONE}'"))
        .values(values)
        .returning(known.index, known.result)
        .cte("done")
    )
    said: dict[str, SQLColumnExpression[object]] = {
        "chat_id": mine.c.chat_id,
        "branch": mine.c.branch,
        "turn_id": mine.c.id,
        "step": step,
        "role": literal_column("'tool'", String),
        "content": func.coalesce(done.c.result, known.result, literal_column("''")),
        "tool_call_id": known.tool_call_id,
        "name": known.name,
    }
    results = (
        select(*said.values())
        .join(mine, and_(known.turn_id == mine.c.id, known.step == step, mine.c.step > step))
        .outerjoin(done, done.c.index == known.index)
        .order_by(known.index)
    )
    told = insert(MessageRow).from_select(list(said), results).returning(MessageRow.id).cte("told")
    return select(mine.c.step).add_cte(done, told, _touched(mine, only_if=mine.c.step > step))


ANSWERED = _answered()
"""Keeps an answer that calls tools, the calls, and what it cost; gives a row if the turn is still the worker's."""
CONCLUDED = _concluded()
"""Keeps a final answer and what it cost, and ends the turn, unless the user has injected something: `is_told`."""
FINISHED = _finished()
"""Keeps the result of a call, and closes its step if it is the last: `step`, where the turn is then."""
KNOWN_IDS = select(ToolCallRow.tool_call_id).where(
    ToolCallRow.chat_id == bindparam("chat", type_=Uuid),
    ToolCallRow.tool_call_id == func.any(bindparam("ids", type_=ARRAY(Text))),
)
"""Which of the ids a call of the chat has already."""


def called(calls: Sequence[Call], answer: ModelAnswer) -> str:
    """The parameter `the_calls` of `ANSWERED`. `answer`: what has them, under the ids that its provider knows."""
    return json.dumps(
        [
            {
                "index": call.index,
                "tool_call_id": call.id,
                "provider_call_id": answer.tool_calls[call.index].id,
                "name": call.name,
                "arguments": call.arguments,
                "arguments_hash": hash_of(call.tool, call.arguments),
                "tool": None if call.tool is None else dict(call.tool),
                "description": call.description,
                "status": call.status,
                "requires_approval": call.requires_approval,
                "waits_for": call.waits_for,
                "started_on": None if call.started_on is None else str(call.started_on),
            }
            for call in calls
        ]
    )

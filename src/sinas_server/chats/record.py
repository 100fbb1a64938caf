"""The journal as rows: reading what is known of a turn and its channels, and what every way of writing it shares."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast
from uuid import UUID

import orjson
from pydantic import JsonValue
from sqlalchemy import Executable, Row, func, insert, select, update

from sinas_server.chats.events import Answer, Asked, Call, Runs, Segment
from sinas_server.chats.tables import ChannelRow, ChatRow, MessageRow, Status, ToolCallRow, TurnRow
from sinas_server.kernel.tool import Wait
from sinas_server.kernel.unit import Db
from sinas_server.providers.usage import ModelCall


def as_call(row: ToolCallRow | Row[tuple[object, ...]]) -> Call:
    """A journaled call."""
    return Call(
        index=row.index,  # type: ignore[arg-type]  # a Row has a method of this name; its column wins at run time
        id=row.tool_call_id,
        name=row.name,
        arguments=row.arguments,
        tool=row.tool,
        description=row.description,
        status=row.status,
        requires_approval=row.requires_approval,
        approved=row.approved,
        intact=row.approved_hash in (None, hash_of(row.tool, row.arguments)),
        waits_for=Wait(row.waits_for) if row.waits_for else None,
        wait_until=row.wait_until,
        asked_at=row.asked_at,
        question=row.question,
        answer=row.answer,
        result=row.result,
        is_error=row.is_error,
        started_on=row.started_on,
        finished_on=row.finished_on,
        finish_order=row.finish_order,
    )


def hash_of(tool: Mapping[str, JsonValue] | None, arguments: str) -> str:
    """What an approval is bound to: SHA-256 (hex) over what is called and the exact arguments."""
    target = [(tool or {}).get("toolset"), (tool or {}).get("target")]
    return hashlib.sha256(orjson.dumps([*target, arguments])).hexdigest()


def as_runs(text: str) -> Runs:
    """Plain text as runs."""
    return (("content", text),) if text else ()


def stored_runs(runs: Runs) -> list[JsonValue] | None:
    """Runs as they are stored: only where there is more than the text."""
    return [list(run) for run in runs] if any(kind == "thinking" for kind, _ in runs) else None


def end_of(channel: ChannelRow, turn: TurnRow) -> tuple[str, Mapping[str, JsonValue]] | None:
    """The last event of a channel, None while it goes on."""
    if channel.suspended_step is not None:
        return "done", {"status": "suspended"}
    if turn.finished_at is None:
        return None
    if turn.status == Status.FAILED:
        return "error", {"error": turn.error or "the turn failed"}
    return "done", {"status": turn.status.lower()}


Read = Callable[[Executable], Awaitable[Sequence[Row[tuple[object, ...]]]]]
"""How rows are read: `Database.read`, or `within` a transaction."""


def within(db: Db) -> Read:
    """Reading inside a transaction."""

    async def read(statement: Executable) -> Sequence[Row[tuple[object, ...]]]:
        return (await db.execute(statement)).all()

    return read


async def read_channel(read: Read, channel_id: UUID) -> ChannelRow | None:
    """A channel; None if its chat was deleted."""
    rows = await read(select(*ChannelRow.__table__.columns).where(ChannelRow.id == channel_id))
    return ChannelRow.loaded(rows[0]._asdict()) if rows else None


async def read_turn(read: Read, turn_id: UUID) -> TurnRow | None:
    """A turn as it is now; None if its chat was deleted."""
    rows = await read(select(*TurnRow.__table__.columns).where(TurnRow.id == turn_id))
    return TurnRow.loaded(rows[0]._asdict()) if rows else None


async def read_segment(read: Read, channel: ChannelRow, turn: TurnRow, *, fresh: bool = False) -> Segment:
    """What the journal says about a channel; `fresh` spares the look when nothing can be journaled yet."""
    segment = Segment(
        chat_id=turn.chat_id,
        turn_id=turn.id,
        channel_id=channel.id,
        first_step=channel.first_step,
        resumed=channel.resumed,
        structured=turn.structured,
        suspended_step=channel.suspended_step,
        asked=cast(tuple[Asked, ...], tuple(map(tuple, cast(list[list[JsonValue]], channel.asked or [])))),
        end=end_of(channel, turn),
    )
    if fresh:
        return segment
    said = await read(
        select(
            *(MessageRow.__table__.columns[name] for name in ("id", "step", "role", "content", "runs", "stream_offset"))
        )
        .where(MessageRow.turn_id == turn.id, MessageRow.step.is_not(None), MessageRow.role != "tool")
        .order_by(MessageRow.seq)
    )
    calls = await read(
        select(*ToolCallRow.__table__.columns).where(ToolCallRow.turn_id == turn.id).order_by(ToolCallRow.index)
    )
    for row in said:
        if row.role != "assistant":
            continue
        runs = cast(Runs, tuple(map(tuple, row.runs or ()))) or as_runs(row.content or "")
        mine = tuple(as_call(call) for call in calls if call.step == row.step)
        injected = tuple(other.id for other in said if other.role == "user" and other.step == row.step)
        segment = segment.with_answer(Answer(row.step, runs, row.stream_offset, mine, injected))
    return segment


def ended(status: Status) -> dict[str, object]:
    """The columns of a turn that has ended."""
    return {"status": status, "finished_at": func.now(), "lease_until": None, "draft": None}


async def read_said(read: Read, message_id: UUID) -> MessageRow:
    """A message; an empty one if it is gone with its chat."""
    rows = await read(select(*MessageRow.__table__.columns).where(MessageRow.id == message_id))
    return MessageRow.loaded(rows[0]._asdict()) if rows else MessageRow()


async def read_calls(read: Read, turn_id: UUID, step: int) -> list[Call]:
    """The calls of a step as they are now."""
    query = select(*ToolCallRow.__table__.columns).where(ToolCallRow.turn_id == turn_id, ToolCallRow.step == step)
    return [as_call(row) for row in await read(query)]


async def last_turn(db: Db, chat: ChatRow) -> TurnRow | None:
    """The newest turn on a chat's branch, of those that have begun."""
    here = (TurnRow.chat_id == chat.id, TurnRow.branch == chat.branch, TurnRow.begun_at.is_not(None))
    return await db.scalar(select(TurnRow).where(*here).order_by(TurnRow.begun_at.desc()).limit(1))


async def locked_turn(db: Db, turn_id: UUID) -> TurnRow | None:
    """A turn as it is now, locked; None if it is gone."""
    return await db.scalar(select(TurnRow).where(TurnRow.id == turn_id).with_for_update())


async def touch(db: Db, chat_id: UUID, **values: object) -> None:
    """Note that something was said in a chat."""
    now = func.clock_timestamp()
    await db.execute(
        update(ChatRow).where(ChatRow.id == chat_id).values(updated_at=now, last_message_at=now, **values),
        execution_options={"synchronize_session": False},
    )


async def add_results(db: Db, turn: TurnRow, step: int, calls: Sequence[Call]) -> None:
    """Put the results of a step's calls into the conversation."""
    rows = [
        {
            "chat_id": turn.chat_id,
            "branch": turn.branch,
            "turn_id": turn.id,
            "step": step,
            "role": "tool",
            "content": call.result or "",
            "tool_call_id": call.id,
            "name": call.name,
        }
        for call in calls
    ]
    if rows:
        await db.execute(insert(MessageRow), rows)


def shown_call(call: Call) -> dict[str, JsonValue]:
    """A call in the form clients know."""
    function: dict[str, JsonValue] = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function, "description": call.description}


def added(usage: Mapping[str, JsonValue], call: ModelCall) -> dict[str, JsonValue]:
    """The usage of a turn with one more model call; the cost is null while no price is known."""
    cost, more = call.cost_usd, call.usage
    return summed(
        usage,
        {
            "calls": int(not call.failed),
            "prompt_tokens": more.prompt_tokens,
            "completion_tokens": more.completion_tokens,
            "total_tokens": more.prompt_tokens + more.completion_tokens,
            "cache_read_tokens": more.cache_read_tokens,
            "cache_write_tokens": more.cache_write_tokens,
            "cost_usd": None if cost is None or call.failed else float(cost),
            "unpriced_calls": int(cost is None),
            "errors": int(call.failed),
        },
    )


def summed(usage: Mapping[str, JsonValue], more: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The usage of a turn with that of work it had others do."""
    numbers = {
        name: value + other
        for name in {**usage, **more}
        if isinstance(value := usage.get(name) or 0, int | float)
        and isinstance(other := more.get(name) or 0, int | float)
    }
    unknown = usage.get("cost_usd") is None and more.get("cost_usd") is None
    return {**usage, **numbers, **({"cost_usd": None} if unknown else {})}

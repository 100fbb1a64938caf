"""Batches of chats: one request begins a chat for each input, followed and cancelled as any batch is."""

from collections.abc import Sequence
from uuid import UUID

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import ColumnElement, Select, case, func, insert, or_, select, update

from sinas_server.agents.kind import AgentSpec
from sinas_server.chats.attachments import accept_for
from sinas_server.chats.chat import CHATS, Wanted, chat_agent, create_chats
from sinas_server.chats.content import Content, Kept
from sinas_server.chats.ending import Ending, cancel_unbegun, end_open
from sinas_server.chats.start import Said, start_new
from sinas_server.chats.tables import OPEN, QUEUE, BatchTurnRow, MessageRow, Status, TurnRow
from sinas_server.chats.views import AgentName, Namespace
from sinas_server.functions.batches import MAX_BATCH, create_batch
from sinas_server.functions.callbacks import MAX_RESULT
from sinas_server.functions.tables import Status as Shown
from sinas_server.kernel.access import Caller
from sinas_server.kernel.delivery import check_receiver, send
from sinas_server.kernel.errors import BadRequestError, InvalidError
from sinas_server.kernel.http import CurrentCaller, Run, new_router
from sinas_server.kernel.job import cancel_topic
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import BatchMembers, Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import BatchRow
from sinas_server.kernel.unit import Db
from sinas_server.kit.schema import violations
from sinas_server.providers.admit import check_budgets
from sinas_server.providers.usage import Payer

EVERY_SECONDS = 1.0
AT_ONCE = 100
NOBODY = "The agent needs a person's approval or answer, and in a batch there is nobody to ask"
DELETED = "the chat was deleted"


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ChatInput(_Body):
    """What one chat of a batch begins with."""

    message: Content = Field(description="Text, or parts.")
    input_variables: dict[str, JsonValue] | None = Field(
        default=None, description="Values the agent's `input_schema` asks for."
    )


class ChatBatchRequest(_Body):
    """Many messages for one agent."""

    inputs: list[ChatInput] = Field(min_length=1, description="At most 1000; each begins a chat of its own.")
    trigger_id_prefix: str | None = Field(
        default=None, max_length=240, description="Each is called so, with a hyphen and its place, counted from 0."
    )
    callback_url: str | None = Field(
        default=None, description="Where the end of each is posted; its host must be one of `CALLBACK_ALLOWED_HOSTS`."
    )
    batch_callback_url: str | None = Field(default=None, description="Where it is posted that all have ended.")
    execution_mode: str | None = Field(
        default=None, max_length=32, description="Kept for clients; all modes run the chats in the queue of agents."
    )


class ChatBatchResponse(BaseModel):
    """What to ask for later."""

    batch_id: UUID = Field(description="Ask for it with `GET /batches/{batch_id}`.")
    execution_ids: list[UUID] = Field(description="The ids of the batch's jobs, in the order of the inputs.")
    chat_ids: list[UUID] = Field(description="The chats, in the order of the inputs.")
    total: int = Field(description="How many there are.")
    status: str = Field(description="Always `queued`.")


async def _begin(
    namespace: Namespace, agent_name: AgentName, body: ChatBatchRequest, runtime: Run, caller: CurrentCaller
) -> ChatBatchResponse:
    """All or none are begun. A chat whose agent needs an approval or an answer fails: nobody is there to give it.

    What is posted to `callback_url` is as by `POST /functions/{namespace}/{name}/execute/async`, with `agent` and
    `chat_id` in place of `function`, and the answer's text as `output_data`.
    """
    if len(body.inputs) > MAX_BATCH:
        raise BadRequestError(f"a batch has at most {MAX_BATCH} inputs, not {len(body.inputs)}")
    callback = check_receiver(runtime, body.callback_url, ("body", "callback_url"))
    batch_callback = check_receiver(runtime, body.batch_callback_url, ("body", "batch_callback_url"))
    messages = [
        await accept_for(runtime, caller, (namespace, agent_name), given.message, ("body", "inputs", index, "message"))
        for index, given in enumerate(body.inputs)
    ]
    async with runtime.database.unit() as db:
        agent = await chat_agent(db, caller, namespace, agent_name)
        _check_inputs(agent, body.inputs)
        await check_budgets(runtime, Payer(caller.id, caller.api_key, agent.id, agent.ref))
        total = len(body.inputs)
        batch_id = await create_batch(db, caller, CHATS.name, agent.ref, total, batch_callback)
        chats, turns = await _begin_chats(db, runtime, caller, agent, (body, messages))
        rows = [
            {
                "batch_id": batch_id,
                "batch_index": index,
                "chat_id": chat_id,
                "turn_id": turn_id,
                "trigger_id": _trigger(body, index),
                "callback_url": callback,
            }
            for index, (chat_id, turn_id) in enumerate(zip(chats, turns, strict=True))
        ]
        await db.execute(insert(BatchTurnRow), rows)
    return ChatBatchResponse(batch_id=batch_id, execution_ids=turns, chat_ids=chats, total=total, status="queued")


def _check_inputs(agent: Resource[AgentSpec], inputs: Sequence[ChatInput]) -> None:
    """Raises `InvalidError` that names every input the agent does not take."""
    found = [
        (("body", "inputs", index, "input_variables", *problem.path), problem.message)
        for index, given in enumerate(inputs)
        for problem in violations(agent.spec.input_schema, given.input_variables or {})
    ]
    if found:
        raise InvalidError(found, "json_schema")


def _trigger(body: ChatBatchRequest, index: int) -> str | None:
    return f"{body.trigger_id_prefix}-{index}" if body.trigger_id_prefix else None


async def _begin_chats(
    db: Db, runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], asked: tuple[ChatBatchRequest, list[Kept]]
) -> tuple[list[UUID], list[UUID]]:
    """The chats and their turns. `asked`: the request, and its messages with their bytes kept."""
    body, messages = asked
    wanted = [
        Wanted(input=given.input_variables or {}, title=_trigger(body, index))
        for index, given in enumerate(body.inputs)
    ]
    chats = await create_chats(db, caller, agent, wanted)
    said = [Said(message, background=True) for message in messages]
    turns = await start_new(db, runtime, caller, agent, list(zip(chats, said, strict=True)))
    return [chat.id for chat in chats], turns


def _status() -> ColumnElement[str]:
    """A member's state in the words of executions; one whose chat was deleted before its end counts as cancelled."""
    words = {Status.WAITING.value: Shown.RUNNING.value, Status.SUSPENDED.value: Shown.AWAITING_INPUT.value}
    now = case(words, value=TurnRow.status, else_=TurnRow.status)
    return func.coalesce(BatchTurnRow.ended, now, Shown.CANCELLED.value)


async def _cancel(db: Db, runtime: Runtime, batch_id: UUID) -> int:
    """A few statements however many there are: workers settle what they work on, `SETTLE_LOOP` what waits."""
    members = select(BatchTurnRow.turn_id).where(BatchTurnRow.batch_id == batch_id)
    unbegun = await cancel_unbegun(db, runtime, TurnRow.id.in_(members))
    canceled = await db.execute(
        update(TurnRow)
        .where(TurnRow.id.in_(members), TurnRow.status.in_(OPEN))
        .values(status=Status.CANCELLED)
        .returning(TurnRow.id),
        execution_options={"synchronize_session": False},
    )
    db.after_commit(lambda: runtime.signals.signal(cancel_topic(QUEUE)))
    return unbegun + len(canceled.all())


CHAT_MEMBERS = BatchMembers(
    rows=select(
        BatchTurnRow.batch_id,
        BatchTurnRow.batch_index,
        BatchTurnRow.turn_id,
        _status().label("status"),
        case(
            (BatchTurnRow.ended.is_not(None), BatchTurnRow.error),
            (TurnRow.id.is_(None), DELETED),
            else_=TurnRow.error,
        ).label("error"),
        BatchTurnRow.chat_id,
        BatchTurnRow.trigger_id,
    ).join_from(BatchTurnRow, TurnRow, TurnRow.id == BatchTurnRow.turn_id, isouter=True),
    cancel=_cancel,
)
"""What the catalog registers for chats."""


_OPEN = select(BatchTurnRow.turn_id).where(BatchTurnRow.ended.is_(None)).limit(1)


async def _tend(runtime: Runtime) -> None:
    """Fail those that wait for people, and note the ends of others."""
    if not await runtime.database.lookup(_OPEN, {}):
        return
    await _fail_suspended(runtime)
    await _note_quiet_ends(runtime)
    while await _note_ends(runtime) == AT_ONCE:
        pass


async def _fail_suspended(runtime: Runtime) -> None:
    query = (
        select(TurnRow)
        .join(BatchTurnRow, BatchTurnRow.turn_id == TurnRow.id)
        .where(TurnRow.status == Status.SUSPENDED)
        .limit(AT_ONCE)
        .with_for_update(of=TurnRow, skip_locked=True)
    )
    async with runtime.database.unit() as db:
        for turn in (await db.scalars(query)).all():
            await end_open(db, runtime, turn, Ending(Status.FAILED, error=NOBODY, reason=f"Not carried out: {NOBODY}."))


def _unnoted() -> Select[BatchTurnRow, TurnRow]:
    """Those that have ended, which is not written down."""
    return (
        select(BatchTurnRow, TurnRow)
        .join_from(BatchTurnRow, TurnRow, TurnRow.id == BatchTurnRow.turn_id, isouter=True)
        .where(BatchTurnRow.ended.is_(None), or_(TurnRow.id.is_(None), TurnRow.finished_at.is_not(None)))
    )


async def _note_quiet_ends(runtime: Runtime) -> None:
    """Keep how those ended of which nobody is to be told, for when their chats are gone."""
    status = func.coalesce(TurnRow.status, Status.CANCELLED.value).label("status")
    error = case((TurnRow.id.is_(None), DELETED), else_=TurnRow.error).label("error")
    found = (
        _unnoted()
        .where(BatchTurnRow.callback_url.is_(None))
        .with_only_columns(BatchTurnRow.turn_id, status, error)
        .cte("found")
    )
    await runtime.database.rows(
        update(BatchTurnRow)
        .where(BatchTurnRow.turn_id == found.c.turn_id, BatchTurnRow.ended.is_(None))
        .values(ended=found.c.status, error=found.c.error)
    )


async def _note_ends(runtime: Runtime) -> int:
    """Keep how some ended and queue the messages about it: how many."""
    query = _unnoted().where(BatchTurnRow.callback_url.is_not(None)).limit(AT_ONCE)
    query = query.with_for_update(of=BatchTurnRow, skip_locked=True)
    async with runtime.database.unit() as db:
        rows = (await db.execute(query)).all()
        for member, turn in rows:
            ended = Status.CANCELLED if turn is None else Status(turn.status)
            error = DELETED if turn is None else turn.error
            content = await _ended_message(db, member, turn, ended, error)
            await send(db, runtime, member.callback_url or "", f"execution_{member.turn_id}", content)
            await db.execute(
                update(BatchTurnRow)
                .where(BatchTurnRow.turn_id == member.turn_id)
                .values(ended=ended, error=error, callback_url=None),
                execution_options={"synchronize_session": False},
            )
    return len(rows)


async def _ended_message(
    db: Db, member: BatchTurnRow, turn: TurnRow | None, ended: Status, error: str | None
) -> dict[str, JsonValue]:
    batch = await db.get_one(BatchRow, member.batch_id)
    said = await db.scalar(
        select(MessageRow.content)
        .where(MessageRow.turn_id == member.turn_id, MessageRow.role == "assistant")
        .order_by(MessageRow.seq.desc())
        .limit(1)
    )
    output = said if ended == Status.COMPLETED else None
    large = len(orjson.dumps(output)) > MAX_RESULT
    ended_at = turn.finished_at.isoformat() if turn is not None and turn.finished_at else None
    return {
        "type": f"execution.{ended.lower()}",
        "timestamp": ended_at,
        "data": {
            "execution_id": str(member.turn_id),
            "agent": batch.target,
            "chat_id": str(member.chat_id),
            "status": ended.value,
            "output_data": None if large else output,
            "output_omitted": large,
            "error": error,
            "usage": turn.usage if turn is not None else None,
            "trigger_id": member.trigger_id,
            "batch_id": str(member.batch_id),
            "batch_index": member.batch_index,
            "completed_at": ended_at,
        },
    }


CHAT_BATCH_LOOP = Loop("tend batches of chats", EVERY_SECONDS, _tend)


def _chat_batches_router() -> APIRouter:
    router = new_router("", "chats")
    router.post(
        "/agents/{namespace}/{agent_name}/chats/batch",
        status_code=202,
        summary="Begin many chats with an agent, without waiting",
        name="create_batch",
        responses={400: {"description": "More than 1000 inputs."}, 404: {"description": "No such agent."}},
    )(_begin)
    return router


chat_batches_router = _chat_batches_router()

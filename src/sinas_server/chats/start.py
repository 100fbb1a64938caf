"""Starting a turn: the user's message, the turn and its channel in one transaction, then a worker is woken.

In a chat whose turn has not ended the new one is queued behind it, or the message is given to the turn that runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast
from uuid import UUID, uuid4

import orjson
from sqlalchemy import ColumnElement, Executable, bindparam, func, insert, literal_column, select, update
from sqlalchemy.exc import IntegrityError

from sinas_server.agents.kind import AgentSpec
from sinas_server.chats.attachments import accept, attach, attaching
from sinas_server.chats.chat import may_talk, own_chat
from sinas_server.chats.content import Content, Kept, texts
from sinas_server.chats.ending import Ending, end_open
from sinas_server.chats.nesting import ChildIds
from sinas_server.chats.prepare import usable_agent
from sinas_server.chats.queued import QueueFullError, WhenBusy
from sinas_server.chats.record import touch
from sinas_server.chats.tables import QUEUE, ChannelRow, ChatRow, MessageRow, QueuedMessageRow, Status, TurnRow
from sinas_server.chats.talk import IS_OPEN, Talk, allowed_agent, read_talk
from sinas_server.functions.execute import MOST_WOKEN
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, Location, NotFoundError
from sinas_server.kernel.job import wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import CallIdentity
from sinas_server.kernel.unit import Db
from sinas_server.providers.admit import check_budgets
from sinas_server.providers.usage import Payer

BUSY = "The agent is still answering the last message: wait for it, or stop it with POST /chats/{chat_id}/stop"
UNANSWERED = "Not carried out: this waited for the user, who went on with something else."
CONTENT: Location = ("body", "content")
"""Where requests to a chat have what is said."""


How = Literal["started", "queued", "injected"]
"""Whether the turn is due, waits for others to end, or ran already when the message was given to it."""


@dataclass(frozen=True)
class Started:
    """The turn that answers a message, and the channel to read it from."""

    chat_id: UUID
    turn_id: UUID
    channel_id: UUID
    how: How = "started"


@dataclass(frozen=True)
class ByCall:
    """Which tool call of another agent's turn begins a turn."""

    parent: TurnRow
    identity: CallIdentity


@dataclass(frozen=True)
class Said:
    """What the user says, or an agent on his behalf."""

    content: Kept | None
    """None for what was said before, as the message of this id."""
    include_thinking: bool = False
    by: ByCall | None = None
    background: bool = False
    """Whether turns that somebody waits for come first."""
    when_busy: WhenBusy = "queue"
    """What becomes of it if a turn of the chat has not ended."""
    message_id: UUID = field(default_factory=uuid4)


async def start_turn(db: Db, runtime: Runtime, caller: Caller, chat: ChatRow, said: Said) -> Started:
    """Have the agent answer a message, after the turns that have not ended. `chat`: locked by this transaction.

    What was said before gets a new answer, after what is on the chat's branch.
    Raises 404, 403, 429 where too many wait, or 409 for a busy chat if so wanted.
    """
    agent = await usable_agent(db, caller, chat)
    await check_budgets(runtime, _payer(caller, agent))
    values = _values(runtime, caller, chat, agent, said)
    if await _is_busy(db, runtime, chat):
        return await _queue(db, runtime, chat, said, values)
    statement = _START_AGAIN if said.content is None else _START
    if (await (await db.connection()).execute(statement, values)).first() is None:
        raise ConflictError(BUSY)
    db.after_commit(lambda: wake(runtime, QUEUE, caller.depth))
    return _started(values)


async def say(db: Db, runtime: Runtime, caller: Caller, chat_id: UUID, said: Said) -> Started:
    """Have the agent answer a message in a chat of the caller, or inject it if so wanted. Raises as `start_turn`."""
    if said.when_busy == "inject" and (started := await inject(db, runtime, caller, chat_id, said)) is not None:
        return started
    return await start_turn(db, runtime, caller, await own_chat(db, caller, chat_id), said)


@dataclass(frozen=True)
class Asked:
    """What a request says, and how."""

    content: Content
    at: Location = CONTENT
    """Where the content stands in the request."""
    include_thinking: bool = False
    when_busy: WhenBusy = "queue"


async def say_now(runtime: Runtime, caller: Caller, chat_id: UUID, asked: Asked) -> Started:
    """Like `say`, in a transaction of its own: two round trips where nothing stands in the way.

    Raises what `accept` does too.
    """
    talk = await _own_talk(runtime, caller, chat_id)
    agent = allowed_agent(caller, talk.chat, talk.agent)
    content = await accept(runtime, caller, agent, asked.content, asked.at)
    said = Said(content, asked.include_thinking, when_busy=asked.when_busy)
    if not talk.busy:
        await check_budgets(runtime, _payer(caller, agent))
        values = _values(runtime, caller, talk.chat, agent, said)
        if values["new_parts"] is not None:
            values["new_parts"] = orjson.dumps(values["new_parts"]).decode()
        if await _began(runtime, values):
            await wake(runtime, QUEUE, caller.depth)
            return _started(values)
    async with runtime.database.unit() as db:
        return await say(db, runtime, caller, chat_id, said)


async def accept_in(runtime: Runtime, caller: Caller, chat_id: UUID, said: Content) -> Kept:
    """What is said in a chat of the caller, as `accept` gives it. Raises 404 and 403 too."""
    mere = texts(said)
    if mere is not None:
        return mere
    talk = await _own_talk(runtime, caller, chat_id)
    return await accept(runtime, caller, allowed_agent(caller, talk.chat, talk.agent), said, CONTENT)


async def _own_talk(runtime: Runtime, caller: Caller, chat_id: UUID) -> Talk:
    talk = await read_talk(runtime.database, chat_id)
    if talk is None or not may_talk(caller, talk.chat.user_id):
        raise NotFoundError("chat not found")
    return talk


async def inject(db: Db, runtime: Runtime, caller: Caller, chat_id: UUID, said: Said) -> Started | None:
    """Give a message to the turn that runs in a chat of the caller, which must not be locked; None if none can hear it.

    It hears it with its next step. A turn that acts with other rights than the caller's, whose answer is one object, or
    whose agent has hooks on what users say, hears none: these are for the caller's own turn.
    """
    agent = await usable_agent(db, caller, await own_chat(db, caller, chat_id, lock=False))
    if agent.spec.hooks is not None and agent.spec.hooks.on_user_message:
        return None
    await check_budgets(runtime, _payer(caller, agent))
    of_caller = (
        TurnRow.user_id == caller.id,
        TurnRow.api_key_id.is_not_distinct_from(caller.api_key),
        TurnRow.owner_ids == list(caller.owners),
        TurnRow.via == caller.via,
    )
    runs = TurnRow.status.in_((Status.PENDING, Status.RUNNING, Status.WAITING))
    turn = await db.scalar(
        select(TurnRow).where(TurnRow.chat_id == chat_id, runs, ~TurnRow.structured, *of_caller).with_for_update()
    )
    if turn is None:
        return None
    await _tell(db, runtime, turn, said)
    return Started(chat_id, turn.id, turn.channel_id, "injected")


async def _tell(db: Db, runtime: Runtime, turn: TurnRow, said: Said) -> None:
    """Have a turn, locked, hear a message: with its next step, or at once where it has not begun."""
    told = said.content or Kept(None)
    ids = {"id": said.message_id, "chat_id": turn.chat_id, "turn_id": turn.id}
    values = {**ids, "content": told.text, "parts": told.parts}
    if turn.attempt == 0:
        await db.execute(insert(MessageRow).values(role="user", branch=turn.branch, **values))
    else:
        most = runtime.settings.max_queued_messages
        if turn.injected - turn.heard >= most:
            raise QueueFullError(most)
        await db.execute(insert(QueuedMessageRow).values(**values))
        await db.execute(
            update(TurnRow).where(TurnRow.id == turn.id).values(injected=TurnRow.injected + 1),
            execution_options={"synchronize_session": False},
        )
    await attach(db, turn.chat_id, told.parts)
    await touch(db, turn.chat_id)


def _payer(caller: Caller, agent: Resource[AgentSpec]) -> Payer:
    return Payer(caller.id, caller.api_key, agent.id, agent.ref)


async def _began(runtime: Runtime, values: dict[str, object]) -> bool:
    try:
        return bool(await runtime.database.direct(_START, values))
    except IntegrityError:  # another message was faster
        return False


async def start_new(
    db: Db, runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], said: Sequence[tuple[ChatRow, Said]]
) -> list[UUID]:
    """Have an agent answer in chats that this transaction has made: the ids of the turns, in one statement."""
    values = [_values(runtime, caller, chat, agent, each) for chat, each in said]
    await (await db.connection()).execute(_START, values)
    for _ in values[:MOST_WOKEN]:
        db.after_commit(lambda: wake(runtime, QUEUE, caller.depth))
    return [_started(each).turn_id for each in values]


def _values(
    runtime: Runtime, caller: Caller, chat: ChatRow, agent: Resource[AgentSpec], said: Said
) -> dict[str, object]:
    """The parameters of `_START`."""
    content = said.content or Kept(None)
    by = said.by
    call = by.identity if by else None
    ids = ChildIds.of(call.turn_id, call.step, call.index) if call else None
    return {
        "new_chat_id": chat.id,
        "new_id": ids.turn if ids else uuid4(),
        "new_channel_id": ids.channel if ids else uuid4(),
        "new_parent_turn_id": call.turn_id if call else None,
        "new_parent_step": call.step if call else None,
        "new_parent_index": call.index if call else None,
        # Before turns that came later than the one that waits for it.
        "new_run_at": by.parent.created_at if by else None,
        "new_user_id": caller.id,
        "new_api_key_id": caller.api_key,
        "new_owner_ids": list(caller.owners),
        "new_via": caller.via,
        "new_depth": caller.depth,
        "new_background": said.background or (by is not None and by.parent.background),
        "new_structured": bool(agent.spec.output_schema),
        "new_include_thinking": said.include_thinking,
        "new_timeout": float(chat.job_timeout or agent.spec.default_job_timeout or runtime.settings.agent_job_timeout),
        "new_message_id": said.message_id,
        "new_content": content.text,
        "new_parts": content.parts,
    }


def _started(values: Mapping[str, object], how: Literal["started", "queued"] = "started") -> Started:
    chat_id, turn_id, channel_id = (cast(UUID, values[f"new_{name}"]) for name in ("chat_id", "id", "channel_id"))
    return Started(chat_id, turn_id, channel_id, how)


_OF_USER = ("user_id", "api_key_id", "owner_ids", "via", "structured", "include_thinking", "timeout")
_OF_CALL = ("parent_turn_id", "parent_step", "parent_index")
_OF_TURN = ("id", "channel_id", "message_id", *_OF_USER, "depth", "background", *_OF_CALL)


def _starting(*, says: bool) -> Executable:
    """Marks the chat as busy and inserts turn, channel and, if something new is said, the message.

    Gives nothing if the chat is busy or gone.
    """
    at = func.clock_timestamp()
    chat, turn, said = ChatRow.__table__.columns, TurnRow.__table__.columns, MessageRow.__table__.columns
    new: dict[str, ColumnElement[object]] = {name: bindparam(f"new_{name}", type_=turn[name].type) for name in _OF_TURN}
    new["run_at"] = func.coalesce(bindparam("new_run_at", type_=turn["run_at"].type), func.now())
    free = (
        update(ChatRow)
        .where(ChatRow.id == bindparam("new_chat_id", type_=chat["id"].type), ChatRow.active_channel_id.is_(None))
        .values(active_channel_id=new["channel_id"], updated_at=at, last_message_at=at)
        .returning(ChatRow.id, ChatRow.branch)
        .cte("free")
    )
    turns = insert(TurnRow).from_select(["chat_id", "branch", *new], select(free, *new.values())).cte("turns")
    channels = (
        insert(ChannelRow)
        .from_select(["chat_id", "id", "turn_id"], select(free.c.id, new["channel_id"], new["id"]))
        .cte("channels")
    )
    if not says:
        return select(free.c.id).add_cte(turns, channels)
    text, parts = (bindparam(f"new_{name}", type_=said[name].type) for name in ("content", "parts"))
    messages = (
        insert(MessageRow)
        .from_select(
            ["chat_id", "branch", "id", "turn_id", "role", "content", "parts"],
            select(free, new["message_id"], new["id"], literal_column("'user'"), text, parts),
        )
        .cte("messages")
    )
    attachments = attaching(free, parts).cte("attachments")
    return select(free.c.id).add_cte(turns, channels, messages, attachments)


_START, _START_AGAIN = _starting(says=True), _starting(says=False)


async def _is_busy(db: Db, runtime: Runtime, chat: ChatRow) -> bool:
    """Whether a turn of the chat has not ended. One that waits for the user ends without him; then others may begin."""
    # Not locked before it is known to be suspended: its worker may hold it, and ask for the chat.
    status = await db.scalar(select(TurnRow.status).where(TurnRow.chat_id == chat.id, IS_OPEN))
    if status != Status.SUSPENDED:
        return status is not None
    turn = await open_turn(db, chat.id)
    if turn is not None and turn.status == Status.SUSPENDED:
        await end_open(db, runtime, turn, Ending(Status.CANCELLED, reason=UNANSWERED))
        turn = await open_turn(db, chat.id)
    return turn is not None


async def _queue(db: Db, runtime: Runtime, chat: ChatRow, said: Said, values: Mapping[str, object]) -> Started:
    """Have a message wait for its turn. The chat is locked, so that the turn that runs cannot end meanwhile."""
    if said.when_busy == "reject":
        raise ConflictError(BUSY)
    at, most = func.clock_timestamp(), runtime.settings.max_queued_messages
    found = await db.execute(
        update(ChatRow)
        .where(ChatRow.id == chat.id, ChatRow.queued < most)
        .values(queued=ChatRow.queued + 1, updated_at=at, last_message_at=at)
        .returning(ChatRow.id),
        execution_options={"synchronize_session": False},
    )
    if found.first() is None:
        raise QueueFullError(most)
    turn = {name: values[f"new_{name}"] for name in _OF_TURN}
    ids = {"chat_id": chat.id, "turn_id": values["new_id"]}
    await db.execute(insert(TurnRow).values(chat_id=chat.id, status=Status.QUEUED, begun_at=None, **turn))
    await db.execute(insert(ChannelRow).values(id=values["new_channel_id"], **ids))
    told = said.content or Kept(None)
    await db.execute(insert(QueuedMessageRow).values(id=said.message_id, content=told.text, parts=told.parts, **ids))
    await attach(db, chat.id, told.parts)
    return _started(values, "queued")


async def open_turn(db: Db, chat_id: UUID) -> TurnRow | None:
    """The chat's turn that has not come to its end, locked."""
    return await db.scalar(
        select(TurnRow)
        .where(TurnRow.chat_id == chat_id, IS_OPEN)
        .order_by(TurnRow.created_at.desc())
        .limit(1)
        .with_for_update()
    )

"""The record of conversations: chats, messages, turns (also the queue entries), tool calls and channels."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ForeignKey,
    Identity,
    Index,
    String,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.tables import Base, Leased, queue_index

QUEUE = "turns"


class Status(StrEnum):
    """Where a turn stands."""

    QUEUED = "QUEUED"
    """It has not begun: the turns before it in its chat have not ended."""
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    """It waits for other work and holds no worker; its channel stays open."""
    SUSPENDED = "SUSPENDED"
    """It waits for people and holds no worker; its channel has ended."""
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


OPEN = (Status.PENDING, Status.RUNNING, Status.WAITING, Status.SUSPENDED)


class CallStatus(StrEnum):
    """Where a tool call stands."""

    PENDING = "pending"
    """It may be carried out, or go on: what it waited for, if anything, is settled."""
    WAITING = "waiting"
    """It waits for what `waits_for` says."""
    DONE = "done"


class ChatRow(Base):
    """A conversation of one user with one agent."""

    __tablename__ = "chats"
    __table_args__ = (
        Index("ix_chats_user", "user_id", "updated_at", "id"),
        Index("ix_chats_agent", "agent_name", "agent_namespace"),
        Index("ix_chats_parent", "parent_chat_id", postgresql_where=text("parent_chat_id IS NOT NULL")),
        Index("ix_chats_expires", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
        # One conversation per agent and key; an archived one has given its key back.
        Index(
            "uq_chats_session",
            "agent_id",
            "session_key",
            unique=True,
            postgresql_where=text("session_key IS NOT NULL AND NOT archived"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[UUID]
    user_email: Mapped[str]
    agent_id: Mapped[UUID]
    agent_namespace: Mapped[str] = mapped_column(String(255))
    agent_name: Mapped[str] = mapped_column(String(255))
    parent_chat_id: Mapped[UUID | None] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    """The chat whose agent called this one's agent."""
    test_id: Mapped[UUID | None]
    """The test that it is part of: the chat in which that was begun, itself or one above."""
    title: Mapped[str]
    archived: Mapped[bool] = mapped_column(server_default=text("false"))
    session_key: Mapped[str | None]
    input: Mapped[dict[str, JsonValue]] = mapped_column(JSON(none_as_null=True))
    job_timeout: Mapped[int | None]
    keep_alive: Mapped[bool | None]
    always_allowed: Mapped[list[str]] = mapped_column(JSON(none_as_null=True), server_default=text("'[]'"))
    """Tools (`toolset:target`) the user has approved once and for all in this chat."""
    counted: Mapped[dict[str, JsonValue]] = mapped_column(JSON(none_as_null=True), server_default=text("'{}'"))
    """How many tokens the model that was asked last, by its name, counts for each that is guessed."""
    active_channel_id: Mapped[UUID | None]
    branch: Mapped[int] = mapped_column(server_default=text("0"))
    """The branch that is shown and goes on; an open turn is on it."""
    queued: Mapped[int] = mapped_column(server_default=text("0"))
    """How many of its turns are queued."""
    expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_message_at: Mapped[datetime | None]


class BranchRow(Base):
    """What was said after a message, beside what had followed it before. The first branch, 0, has no such row."""

    __tablename__ = "branches"

    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    parent: Mapped[int]
    """The branch of the message it follows."""
    fork_seq: Mapped[int] = mapped_column(BigInteger)
    """The `seq` of that message; 0 where it begins the conversation anew."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class TurnRow(Leased, Base):
    """The work on one user message: for whom, how far it is, and how it ended."""

    __tablename__ = "turns"
    __table_args__ = (
        queue_index("turns"),
        Index("ix_turns_chat", "chat_id", "created_at"),
        Index("ix_turns_created", "created_at"),
        Index(
            "ix_turns_unsettled",
            "lease_until",
            postgresql_where=text("status = 'CANCELLED' AND finished_at IS NULL"),
        ),
        Index("ix_turns_waiting", "id", postgresql_where=text("status IN ('WAITING', 'SUSPENDED')")),
        Index("ix_turns_parent", "parent_turn_id", postgresql_where=text("parent_turn_id IS NOT NULL")),
        Index(
            "uq_turns_open",
            "chat_id",
            unique=True,
            postgresql_where=text("status IN ('PENDING', 'RUNNING', 'WAITING', 'SUSPENDED')"),
        ),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    branch: Mapped[int] = mapped_column(server_default=text("0"))
    """Where what is said in it belongs."""
    message_id: Mapped[UUID]
    """What the user said that it answers; other turns may answer it too."""

    # For whom: the principal whose rights of the moment count.
    user_id: Mapped[UUID]
    api_key_id: Mapped[UUID | None]
    owner_ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default=text("'{}'"))
    via: Mapped[str] = mapped_column(String(16))

    # By which tool call of another agent's turn, if by any.
    parent_turn_id: Mapped[UUID | None]
    parent_step: Mapped[int | None]
    parent_index: Mapped[int | None]

    channel_id: Mapped[UUID]
    """Where its events go now; a decision or answer of the user opens another channel."""
    step: Mapped[int] = mapped_column(server_default=text("0"))
    """How many rounds of tool calls are behind it."""
    structured: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether the agent has an `output_schema`, so that its answer is sent in one piece."""
    include_thinking: Mapped[bool] = mapped_column(server_default=text("false"))
    injected: Mapped[int] = mapped_column(server_default=text("0"))
    """How many messages were given to it while it ran."""
    heard: Mapped[int] = mapped_column(server_default=text("0"))
    """How many of them are part of the conversation."""
    timeout: Mapped[float]
    worked_seconds: Mapped[float] = mapped_column(server_default=text("0"))
    progress_attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """The last attempt that got a step further."""
    usage: Mapped[dict[str, JsonValue]] = mapped_column(JSON(none_as_null=True), server_default=text("'{}'"))
    draft: Mapped[dict[str, JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    """The final answer while hooks look at it: `text`, `native`, `usage`."""
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    begun_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    """When its message became part of the conversation; none while it is queued, and for one that was withdrawn."""
    finished_at: Mapped[datetime | None]

    @property
    def has_stopped(self) -> bool:
        """Whether it goes no further by itself: it has ended, or waits for people."""
        return self.finished_at is not None or self.status == Status.SUSPENDED


class MessageRow(Base):
    """What was said: by the user, by the model, or by a tool."""

    __tablename__ = "messages"
    __table_args__ = (
        Index("ix_messages_path", "chat_id", "branch", "seq"),
        Index("ix_messages_created", "created_at", "seq"),
        Index("uq_messages_answer", "turn_id", "step", unique=True, postgresql_where=text("role = 'assistant'")),
        Index("uq_messages_result", "turn_id", "tool_call_id", unique=True, postgresql_where=text("role = 'tool'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    seq: Mapped[int] = mapped_column(BigInteger, Identity())
    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    branch: Mapped[int] = mapped_column(server_default=text("0"))
    """A branch holds what was said since it began; what was said before is on those it comes from."""
    turn_id: Mapped[UUID | None]
    step: Mapped[int | None]
    role: Mapped[str] = mapped_column(String(16))
    content: Mapped[str | None]
    parts: Mapped[list[JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    """Multimodal content, as the client sent it; `content` is then empty."""
    passed: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether the agent's hooks have seen what the user said and let it pass; later turns do not ask them again."""
    tool_calls: Mapped[list[JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    tool_call_id: Mapped[str | None]
    name: Mapped[str | None]
    native: Mapped[JsonValue] = mapped_column(JSON(none_as_null=True), nullable=True)
    """The provider's own form of an answer."""
    usage: Mapped[dict[str, JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    stream_offset: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    """The position of the `restart` event that the answer's text follows on its channel; 0 for none."""
    runs: Mapped[list[JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    """The answer as it was streamed, `[kind, text]` by turns, where reasoning was sent too."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class SummaryRow(Base):
    """What was said up to a message, in short, for the model that is not given those messages any more."""

    __tablename__ = "summaries"
    __table_args__ = (Index("ix_summaries_chat", "chat_id"),)

    message_id: Mapped[UUID] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    """The last message it covers; with it go all before."""
    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    content: Mapped[str]
    messages: Mapped[int]
    """How many it stands for."""
    provider: Mapped[str]
    model: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class AttachmentRow(Base):
    """A blob that messages of a chat show; it goes with the chat."""

    __tablename__ = "attachments"
    __table_args__ = (Index("ix_attachments_chat", "chat_id"), Index("ix_attachments_blob", "blob"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    blob: Mapped[str] = mapped_column(ForeignKey("blobs.key"))
    media_type: Mapped[str] = mapped_column(String(255))
    filename: Mapped[str | None]


class QueuedMessageRow(Base):
    """What the user said while a turn ran, until it becomes part of the conversation, under the same id.

    Its turn is queued, or is the one that ran: then it was injected.
    """

    __tablename__ = "queued_messages"
    __table_args__ = (Index("ix_queued_messages_chat", "chat_id", "seq"), Index("ix_queued_messages_turn", "turn_id"))

    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, Identity())
    """The order of arrival."""
    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    turn_id: Mapped[UUID] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"))
    content: Mapped[str | None]
    parts: Mapped[list[JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class ToolCallRow(Base):
    """One call a model asked for. Its result, once here, is never asked for again."""

    __tablename__ = "tool_calls"
    __table_args__ = (
        UniqueConstraint("chat_id", "tool_call_id", name="uq_tool_calls_shown"),
        Index("ix_tool_calls_paged", "chat_id", postgresql_where=text("whole_result IS NOT NULL")),
    )

    turn_id: Mapped[UUID] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    tool_call_id: Mapped[str]
    """The id shown to clients and to the model from now on."""
    provider_call_id: Mapped[str]
    name: Mapped[str]
    arguments: Mapped[str]
    arguments_hash: Mapped[str] = mapped_column(String(64))
    """Of what is called with which arguments: what an approval is about."""
    tool: Mapped[dict[str, JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    """How to find what is called; none for a name that no tool has."""
    description: Mapped[str]
    status: Mapped[str] = mapped_column(String(32))
    requires_approval: Mapped[bool]
    approved: Mapped[bool | None]
    approved_hash: Mapped[str | None] = mapped_column(String(64))
    decided_by: Mapped[UUID | None]
    decided_at: Mapped[datetime | None]
    waits_for: Mapped[str | None] = mapped_column(String(16))
    """What it waits or has waited for (`kernel.tool.Wait`)."""
    wait_until: Mapped[datetime | None]
    """When it goes on without."""
    question: Mapped[dict[str, JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    """What the user is asked: `question`, `options`."""
    answer: Mapped[str | None]
    """What the user said to it."""
    asked_at: Mapped[datetime | None]
    result: Mapped[str | None]
    whole_result: Mapped[str | None]
    """All of it, where `result` is only its first page."""
    is_error: Mapped[bool] = mapped_column(server_default=text("false"))
    started_on: Mapped[UUID | None]
    """The channel that tells of its start; none while it may not be carried out."""
    finished_on: Mapped[UUID | None]
    """The channel that tells of its end."""
    finish_order: Mapped[int | None]
    """As which of its step's calls it finished, counted from 1."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class LateHookRow(Base):
    """A hook on an answer that nobody waited for, until what it returns is applied."""

    __tablename__ = "late_hooks"
    __table_args__ = (Index("ix_late_hooks_turn", "turn_id"),)

    execution_id: Mapped[UUID] = mapped_column(primary_key=True)
    turn_id: Mapped[UUID] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"))
    step: Mapped[int]
    """The step of the answer."""
    index: Mapped[int]
    """Its place among the agent's hooks."""


class TurnKeyRow(Base):
    """The `Idempotency-Key` that a user gave for a turn."""

    __tablename__ = "turn_keys"
    __table_args__ = (Index("ix_turn_keys_created", "created_at"), Index("ix_turn_keys_chat", "chat_id"))

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 (hex) of what was asked."""
    chat_id: Mapped[UUID | None] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    turn_id: Mapped[UUID | None]
    channel_id: Mapped[UUID | None]
    how: Mapped[str | None] = mapped_column(String(16))
    """How what was said came to the turn (`start.Started`)."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BatchTurnRow(Base):
    """A turn that a batch of chats began. It outlives its chat, so that the batch stays what it was."""

    __tablename__ = "batch_turns"
    __table_args__ = (
        Index("uq_batch_turns_turn", "turn_id", unique=True),
        Index("ix_batch_turns_open", "turn_id", postgresql_where=text("ended IS NULL")),
    )

    batch_id: Mapped[UUID] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True)
    batch_index: Mapped[int] = mapped_column(primary_key=True)
    """Its place among the inputs, counted from 0."""
    chat_id: Mapped[UUID]
    turn_id: Mapped[UUID]
    trigger_id: Mapped[str | None]
    callback_url: Mapped[str | None]
    """Who is to be told its end, until he was."""
    ended: Mapped[str | None] = mapped_column(String(16))
    """The status it ended with, once that was noticed."""
    error: Mapped[str | None]


class ChannelRow(Base):
    """One stretch of a turn's events, from a start to an end or a pause; clients replay it from its beginning."""

    __tablename__ = "channels"
    __table_args__ = (Index("ix_channels_turn", "turn_id"), Index("ix_channels_chat", "chat_id"))

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    chat_id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"))
    turn_id: Mapped[UUID] = mapped_column(ForeignKey("turns.id", ondelete="CASCADE"))
    first_step: Mapped[int] = mapped_column(server_default=text("0"))
    resumed: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether it begins after the answer of `first_step`: with the calls that waited for the user."""
    suspended_step: Mapped[int | None]
    """The step whose calls wait for the user; they ended it."""
    asked: Mapped[list[JsonValue] | None] = mapped_column(JSON(none_as_null=True))
    """What the user was asked at its end: `[event name, data]` each."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

"""The record of every execution; its row is also the queue entry."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import ARRAY, JSON, Index, String, Uuid, func, text
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.tables import Base, Leased, queue_index

QUEUE = "functions"


class Status(StrEnum):
    """Where an execution stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    AWAITING_INPUT = "AWAITING_INPUT"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


ENDED = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class Trigger(StrEnum):
    """What started an execution."""

    API = "API"
    AGENT = "AGENT"
    WEBHOOK = "WEBHOOK"
    SCHEDULE = "SCHEDULE"
    CDC = "CDC"
    HOOK = "HOOK"
    MANUAL = "MANUAL"


class Cause(StrEnum):
    """Why an execution failed."""

    ERROR = "error"  # the code raised, or its result is not JSON
    TIMEOUT = "timeout"
    LIMIT = "limit"  # memory, output or the process itself
    OUTPUT = "output"  # the result breaks the output schema
    FUNCTION = "function"  # deleted, or it cannot run now
    INTERRUPTED = "interrupted"  # the worker was lost, and running again was not safe
    INTERNAL = "internal"  # ours


class SharedPoolRow(Base):
    """How many shared workers somebody asked for; the only row, if there is one."""

    __tablename__ = "shared_pool"

    id: Mapped[int] = mapped_column(primary_key=True)
    count: Mapped[int]
    generation: Mapped[int] = mapped_column(server_default=text("0"))
    """How often they were to be replaced."""


class ExecutionRow(Leased, Base):
    """One execution of a function: for whom, of what, with which input, and how it ended."""

    __tablename__ = "executions"
    __table_args__ = (
        queue_index("executions"),
        # A tool call creates at most one execution, however often its turn is resumed.
        Index(
            "uq_executions_call",
            "turn_id",
            "step",
            "call_index",
            unique=True,
            postgresql_where=text("turn_id IS NOT NULL"),
        ),
        Index("ix_executions_user", "user_id", "created_at"),
        Index("ix_executions_created", "created_at"),
        Index("ix_executions_function", "namespace", "name", "created_at"),
        Index("ix_executions_chat", "chat_id", postgresql_where=text("chat_id IS NOT NULL")),
        Index("ix_executions_parent", "parent_id", postgresql_where=text("parent_id IS NOT NULL")),
        # A key makes at most one execution, however often and by how many at once it is sent.
        Index(
            "uq_executions_key",
            "user_id",
            "function_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_executions_batch", "batch_id", "batch_index", postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            "ix_executions_callback",
            "id",
            postgresql_where=text("callback_url IS NOT NULL AND called_back_at IS NULL"),
        ),
        Index(
            "ix_executions_limited",
            "function_id",
            "run_at",
            postgresql_where=text("max_concurrency IS NOT NULL AND status IN ('PENDING', 'RUNNING')"),
        ),
        Index("ix_executions_dead", "dead_at", postgresql_where=text("dead_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())

    # For whom: the principal that its access token stands for.
    user_id: Mapped[UUID]
    user_email: Mapped[str]
    api_key_id: Mapped[UUID | None]
    owner_ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid), server_default=text("'{}'"))
    """The owners of the functions that called it, whose rights limit it too."""

    # Of what.
    function_id: Mapped[UUID | None]
    """None for code that is no stored function: it stands in the input (see `code.py`)."""
    function_owner_id: Mapped[UUID | None]
    namespace: Mapped[str] = mapped_column(String(255))
    name: Mapped[str] = mapped_column(String(255))
    version: Mapped[int]
    """The version of the function when it was asked for, then the one that ran."""

    # By what.
    trigger_type: Mapped[str] = mapped_column(String(16))
    trigger_id: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    """The same key of the same user for the same function means this execution, as long as it is kept."""
    rerun_of: Mapped[UUID | None]
    """The execution that somebody wanted to have again."""
    batch_id: Mapped[UUID | None]
    batch_index: Mapped[int | None]
    parent_id: Mapped[UUID | None]
    """The execution whose code asked for this one."""
    chat_id: Mapped[UUID | None]
    tool_call_id: Mapped[str | None]
    turn_id: Mapped[UUID | None]
    step: Mapped[int | None]
    call_index: Mapped[int | None]

    # How.
    input_data: Mapped[dict[str, JsonValue]] = mapped_column(JSON(none_as_null=True))
    timeout: Mapped[float]
    timeout_from: Mapped[str] = mapped_column(String(16))
    """Whose limit that is: `function`, `request`, `settings` or, of code, `code`."""
    shared_pool: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether it was asked for as trusted code; what counts is the function when it runs."""
    max_retries: Mapped[int | None]
    """How often it is tried again when its code fails, and then is a dead letter; null where somebody is told."""

    max_concurrency: Mapped[int | None]
    """The limit that its function had when it was asked for; null: none, and it is never held."""
    callback_url: Mapped[str | None]
    called_back_at: Mapped[datetime | None]
    """When the task was queued that tells the end to `callback_url`."""

    # What came of it.
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Attempts that ended otherwise than by the loss of their worker."""
    pauses: Mapped[int] = mapped_column(server_default=text("0"))
    """How often it has asked for input."""
    prompt: Mapped[str | None]
    """What it asks for, while it waits for input."""
    answer: Mapped[str | None]
    """What it was given last."""
    output_data: Mapped[JsonValue] = mapped_column(JSON(none_as_null=True), nullable=True)
    cause: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[str | None]
    traceback: Mapped[str | None]
    stdout: Mapped[str] = mapped_column(server_default="")
    stderr: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    """When the current attempt's code was started."""
    completed_at: Mapped[datetime | None]
    dead_at: Mapped[datetime | None]
    """Since when it is a dead letter: it has failed for good, and nobody was waiting to hear of it."""
    duration_ms: Mapped[int | None]

    @property
    def has_stopped(self) -> bool:
        """Whether it goes no further by itself: it has ended, or waits for input."""
        return self.status in ENDED or self.status == Status.AWAITING_INPUT


LARGE = (ExecutionRow.input_data, ExecutionRow.output_data, ExecutionRow.stdout, ExecutionRow.stderr)
"""What lists of many do without."""

"""What asking models costs: every call, the limits administrators set, and what counts towards each limit."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, Numeric, String, func, text
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.tables import Base


class UsageRow(Base):
    """One call of a model. It outlives the chat, the agent and the user it was for, whose ids it keeps."""

    __tablename__ = "usage"
    __table_args__ = (
        # What a step of a turn cost is written down once, whatever becomes of the worker.
        Index("uq_usage_step", "turn_id", "step", unique=True, postgresql_where=text("NOT failed AND NOT estimated")),
        Index("ix_usage_at", "at"),
        Index("ix_usage_user", "user_id", "at"),
        Index("ix_usage_agent", "agent_id", "at"),
        Index("ix_usage_api_key", "api_key_id", "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    user_id: Mapped[UUID]
    api_key_id: Mapped[UUID | None]
    agent_id: Mapped[UUID | None]
    agent: Mapped[str | None]
    """`namespace/name` as it was then."""
    chat_id: Mapped[UUID | None]
    turn_id: Mapped[UUID | None]
    step: Mapped[int | None]
    provider: Mapped[str]
    model: Mapped[str]
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_write_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal | None] = mapped_column(Numeric(20, 10))
    """None if no price is known."""
    failed: Mapped[bool] = mapped_column(server_default=text("false"))
    estimated: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether the tokens are guessed from the text, because the answer was cut off before its provider told them."""


class EarlierUsageRow(Base):
    """What calls came to that are forgotten: all that budgets without a period need to know of them."""

    __tablename__ = "earlier_usage"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    api_key_id: Mapped[UUID] = mapped_column(primary_key=True)
    """All zeros for none, as in the next."""
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Numeric(20, 10))


class BudgetRow(Base):
    """A budget as it is looked up before each call: one row per active resource of the kind `budget`."""

    __tablename__ = "budgets"
    __table_args__ = (Index("ix_budgets_subject", "subject_id"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """The id of the resource."""
    name: Mapped[str] = mapped_column(String(255))
    applies_to: Mapped[str] = mapped_column(String(16))
    subject_id: Mapped[UUID]
    each_user: Mapped[bool]
    period: Mapped[str] = mapped_column(String(16))
    max_tokens: Mapped[int | None] = mapped_column(BigInteger)
    max_usd: Mapped[Decimal | None] = mapped_column(Numeric(20, 10))


class SpendingRow(Base):
    """What counts towards a budget in one period; written in the transaction that records the call."""

    __tablename__ = "budget_spending"

    budget_id: Mapped[UUID] = mapped_column(ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True)
    counted_for: Mapped[UUID] = mapped_column(primary_key=True)
    """The user, where a budget counts for each apart; otherwise all zeros."""
    period_start: Mapped[datetime] = mapped_column(primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Numeric(20, 10))

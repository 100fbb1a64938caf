"""The record of tests: chats that were begun as one, and what models said in them."""

from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import JSON, BigInteger, ForeignKey, Identity, String
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.tables import Base


class TestChatRow(Base):
    """A chat that was begun as a test: where its models' answers come from, and what its tools return."""

    __tablename__ = "test_chats"

    id: Mapped[UUID] = mapped_column(ForeignKey("chats.id", ondelete="CASCADE"), primary_key=True)
    mode: Mapped[str] = mapped_column(String(16))
    """`live`, `record` or `replay`."""
    stubs: Mapped[list[JsonValue]] = mapped_column(JSON(none_as_null=True))


class RecordedRow(Base):
    """What a model was asked in a test, and what it said."""

    __tablename__ = "recorded"

    test_id: Mapped[UUID] = mapped_column(ForeignKey("test_chats.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of what was asked."""
    seq: Mapped[int] = mapped_column(BigInteger, Identity())
    asked: Mapped[dict[str, JsonValue]] = mapped_column(JSON(none_as_null=True))
    said: Mapped[dict[str, JsonValue]] = mapped_column(JSON(none_as_null=True))

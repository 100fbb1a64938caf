"""Responses that were stored, for `previous_response_id`."""

from datetime import datetime
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import JSON, ForeignKey, Index, String, func
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.tables import Base


class ResponseRow(Base):
    """An answer of `/v1/responses` with what it answered. Its user's alone, and deleted after a while."""

    __tablename__ = "openai_responses"
    __table_args__ = (Index("ix_openai_responses_user", "user_id"), Index("ix_openai_responses_expires", "expires_at"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    previous_id: Mapped[str | None] = mapped_column(String(64))
    chat_id: Mapped[UUID | None]
    """Of an agent: where it was said. The chat may be gone before the response is."""
    turn_id: Mapped[UUID | None]
    messages: Mapped[list[JsonValue]] = mapped_column(JSON)
    """What this request added to the conversation and the answer, as messages of chat completions without bytes."""
    body: Mapped[dict[str, JsonValue]] = mapped_column(JSON)
    """The response as it was sent."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class ResponseBlobRow(Base):
    """A blob with bytes of a stored response."""

    __tablename__ = "openai_response_blobs"
    __table_args__ = (Index("ix_openai_response_blobs_blob", "blob"),)

    response_id: Mapped[str] = mapped_column(ForeignKey("openai_responses.id", ondelete="CASCADE"), primary_key=True)
    blob: Mapped[str] = mapped_column(ForeignKey("blobs.key"), primary_key=True)

"""Sets of packages: what was resolved from the approved packages, and how far it is."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, JSON, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.tables import Base, Leased, queue_index


class PackageSetRow(Leased, Base):
    """The approved packages as they were at one time, locked. Each change of an approval asks for a new one.

    `COMPLETED` means that the lock is made; `SUPERSEDED` that a later one holds the same changes. Workers use the
    completed one that was read last.
    """

    __tablename__ = "package_sets"
    __table_args__ = (queue_index("package_sets"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    read_at: Mapped[datetime | None]
    """When the approvals were read: a set read later holds later changes."""
    requirements: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """What was approved, as pip writes it."""
    left_out: Mapped[dict[str, str]] = mapped_column(JSON, server_default=text("'{}'"))
    """Requirements that the set does without, with the reason."""
    lock: Mapped[str | None]
    """`name==version` with hashes, of all that is installed."""
    message: Mapped[str | None]
    """Why it failed, or is tried again."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    ready_at: Mapped[datetime | None]
    """When the first worker had it installed and used it."""

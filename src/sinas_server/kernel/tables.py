"""The tables every kind shares: resources, their versions, queued tasks and the audit log."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Self, cast
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    String,
    Text,
    event,
    func,
    inspect,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column


class Base(DeclarativeBase):
    """The metadata that migrations are checked against."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        datetime: DateTime(timezone=True),
        str: Text,
    }

    @classmethod
    def loaded(cls, values: Mapping[str, object]) -> Self:
        """A row as it was read outside of a session. Its constructor, made for new rows, takes 30 times as long."""
        configure_mappers()  # as the constructor does; until then nothing can be read of any row
        row = cast(Self, inspect(cls).class_manager.new_instance())
        row.__dict__.update(values)
        return row


class ResourceRow(Base):
    """Anything a user declared, of any kind. `scope` is the owner's id for kinds whose names are per user, else ''."""

    __tablename__ = "resources"
    __table_args__ = (
        Index(
            "uq_resources_name",
            "kind",
            "scope",
            "namespace",
            "name",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index("ix_resources_owner", "owner_id"),
        Index("ix_resources_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    kind: Mapped[str] = mapped_column(String(64))
    scope: Mapped[str] = mapped_column(String(64), server_default="")
    namespace: Mapped[str] = mapped_column(String(255), server_default="")
    name: Mapped[str] = mapped_column(String(255))
    owner_id: Mapped[UUID | None]
    # `json`, not `jsonb`: the order of properties matters in schemas.
    spec: Mapped[dict[str, Any]]
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    version: Mapped[int] = mapped_column(server_default=text("1"))
    checksum: Mapped[str] = mapped_column(String(64))
    managed_by: Mapped[str | None] = mapped_column(String(255))
    config_name: Mapped[str | None] = mapped_column(String(255))
    config_checksum: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_by: Mapped[UUID | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_by: Mapped[UUID | None]
    deleted_at: Mapped[datetime | None]


class ResourceVersionRow(Base):
    """What a resource was at each version."""

    __tablename__ = "resource_versions"
    __table_args__ = (Index("uq_resource_versions", "resource_id", "version", unique=True),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    resource_id: Mapped[UUID] = mapped_column(ForeignKey("resources.id", ondelete="CASCADE"))
    version: Mapped[int]
    namespace: Mapped[str] = mapped_column(String(255))
    name: Mapped[str] = mapped_column(String(255))
    spec: Mapped[dict[str, Any]]
    is_active: Mapped[bool]
    created_by: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ReferenceRow(Base):
    """Which resource points to which: makes "who uses this?" one look-up when something is deleted or renamed."""

    __tablename__ = "resource_references"
    __table_args__ = (Index("ix_resource_references_target", "kind", "namespace", "name"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    source_id: Mapped[UUID] = mapped_column(ForeignKey("resources.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(64))
    namespace: Mapped[str] = mapped_column(String(255), server_default="")
    name: Mapped[str] = mapped_column(String(255), server_default="")
    target_id: Mapped[UUID | None]
    hard: Mapped[bool]


class SeedRow(Base):
    """What this installation was once given; the row outlives the resource."""

    __tablename__ = "seeds"

    kind: Mapped[str] = mapped_column(String(64), primary_key=True)
    namespace: Mapped[str] = mapped_column(String(255), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())


APPEND_ONLY = (
    """CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION USING
    MESSAGE = 'rows of ' || TG_TABLE_NAME || ' are only ever added', ERRCODE = 'insufficient_privilege';
    END $$""",
    """CREATE OR REPLACE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()""",
)
"""What follows the creation of the audit log; migrations/env.py puts it into migrations."""


class AuditRow(Base):
    """Who changed what; rows are only ever added, which a trigger sees to."""

    __tablename__ = "audit_log"
    __table_args__ = (
        Index("ix_audit_target", "target_kind", "target"),
        Index("ix_audit_at", "at"),
        Index("ix_audit_actor", "actor"),
        {"info": {"after_create": APPEND_ONLY}},
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    actor_id: Mapped[UUID | None]
    actor: Mapped[str] = mapped_column(server_default="")
    via: Mapped[str] = mapped_column(String(32), server_default="")
    action: Mapped[str] = mapped_column(String(64))
    target_kind: Mapped[str] = mapped_column(String(64))
    target: Mapped[str]
    detail: Mapped[dict[str, Any] | None]


def _make_append_only(_: object, connection: Connection, **__: object) -> None:
    for statement in APPEND_ONLY:
        connection.execute(text(statement))


event.listen(AuditRow.__table__, "after_create", _make_append_only)


TAKEN = ("RUNNING", "AWAITING_INPUT")
"""The states in which a worker holds a row: it must keep the lease, or the row is lost and another takes it."""
CANCELED = "CANCELLED"
"""The state in which whoever canceled a row leaves it to the worker that runs it, if there is one."""


class Leased:
    """The columns of work that workers claim: the row owns claim, attempts and end; Redis only wakes workers."""

    status: Mapped[str] = mapped_column(String(16), server_default="PENDING")
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    run_at: Mapped[datetime] = mapped_column(server_default=func.now())
    lease_until: Mapped[datetime | None]
    worker: Mapped[str | None] = mapped_column(String(255))
    held: Mapped[bool] = mapped_column(server_default=text("false"))
    """Not to be claimed yet: it waits until there is room for it among others of its sort."""
    background: Mapped[bool] = mapped_column(server_default=text("false"))
    """Nobody waits for it in particular, as for one of a batch: what somebody waits for is claimed first."""
    depth: Mapped[int] = mapped_column(server_default=text("0"))
    """How many waiting ancestors hold a slot: work with depth > 0 passes the slot limit, or they would deadlock."""


def queue_index(table: str) -> Index:
    """The index that makes claiming the next row cheap."""
    return Index(
        f"ix_{table}_queue",
        "run_at",
        postgresql_where=text("status IN ('PENDING', 'RUNNING', 'AWAITING_INPUT') AND NOT held"),
    )


class BatchRow(Base):
    """Jobs asked for at once. They name it, and are inserted in its own transaction."""

    __tablename__ = "batches"
    __table_args__ = (Index("ix_batches_open", "created_at", postgresql_where=text("finished_at IS NULL")),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[UUID] = mapped_column(index=True)
    resource: Mapped[str] = mapped_column(String(64))
    """Whose permissions count for who reads and cancels it: `executions` or `chats`."""
    target: Mapped[str]
    """`namespace/name` of what runs."""
    total: Mapped[int]
    callback_url: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    """When it was noticed that all of them have ended."""


class TaskRow(Leased, Base):
    """Small work for the scheduler process: a mail to send, a delivery to make."""

    __tablename__ = "tasks"
    __table_args__ = (queue_index("tasks"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str] = mapped_column(String(64))
    payload: Mapped[dict[str, Any]]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class BlobRow(Base):
    """Bytes kept outside the database. Whatever table has a foreign key to this one holds the blobs it names."""

    __tablename__ = "blobs"
    __table_args__ = (Index("ix_blobs_used", "used_at"),)

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The SHA-256 of the bytes (hex)."""
    size: Mapped[int] = mapped_column(BigInteger)
    used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When the same bytes last arrived: whoever brought them may still be about to hold them."""

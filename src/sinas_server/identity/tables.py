"""The tables of identity: users, roles, API keys, login codes, sessions, and what running executions may do."""

from datetime import datetime
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import ARRAY, JSON, ForeignKey, Index, String, UniqueConstraint, Uuid, func, text
from sqlalchemy.orm import Mapped, mapped_column

from sinas_server.kernel.tables import Base


class UserRow(Base):
    """A person, known by an e-mail address in lower case."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("external_auth_provider", "external_auth_id", name="uq_users_external_auth"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    email: Mapped[str] = mapped_column(String(320), unique=True)
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    last_login_at: Mapped[datetime | None]
    external_auth_provider: Mapped[str | None] = mapped_column(String(255))
    external_auth_id: Mapped[str | None] = mapped_column(String(255))
    custom_fields: Mapped[dict[str, JsonValue]] = mapped_column(JSON, server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RoleRow(Base):
    """A named set of permissions. `seeded`: the default permissions ever given to a built-in role."""

    __tablename__ = "roles"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str] = mapped_column(String(255), unique=True)
    description: Mapped[str | None]
    email_domain: Mapped[str | None] = mapped_column(String(255), index=True)
    seeded: Mapped[list[str]] = mapped_column(JSON, server_default=text("'[]'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class UserRoleRow(Base):
    """A user's membership in a role."""

    __tablename__ = "user_roles"
    __table_args__ = (UniqueConstraint("user_id", "role_id", name="uq_user_roles"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    role_id: Mapped[UUID] = mapped_column(ForeignKey("roles.id", ondelete="CASCADE"), index=True)
    added_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RolePermissionRow(Base):
    """A permission of a role; it counts only while `permission_value` is true."""

    __tablename__ = "role_permissions"
    __table_args__ = (UniqueConstraint("role_id", "permission_key", name="uq_role_permissions"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    role_id: Mapped[UUID] = mapped_column(ForeignKey("roles.id", ondelete="CASCADE"))
    permission_key: Mapped[str]
    permission_value: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKeyRow(Base):
    """A key for programs; only its HMAC is stored. A key made with another key is revoked together with it."""

    __tablename__ = "api_keys"

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(255))
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    key_prefix: Mapped[str] = mapped_column(String(32))
    permissions: Mapped[dict[str, bool]] = mapped_column(JSON)
    is_active: Mapped[bool] = mapped_column(server_default=text("true"))
    last_used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class OtpSessionRow(Base):
    """A code that was mailed; only its HMAC is stored."""

    __tablename__ = "otp_sessions"
    __table_args__ = (Index("ix_otp_sessions_expires", "expires_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(320))
    purpose: Mapped[str] = mapped_column(String(16))
    """What the code is good for: the login of the mode it was sent in, or `reset`."""
    code_hash: Mapped[str] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class PasswordRow(Base):
    """The password of a user who has one, as argon2id hash; apart from `users`, so that no list reads it."""

    __tablename__ = "passwords"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    hash: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class RefreshTokenRow(Base):
    """A session: its refresh token's HMAC. Access tokens name it, so revoking it ends them too."""

    __tablename__ = "refresh_tokens"
    __table_args__ = (Index("ix_refresh_tokens_expires", "expires_at"),)

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it began or last got an access token."""
    ip: Mapped[str | None] = mapped_column(String(64))
    user_agent: Mapped[str | None] = mapped_column(String(512))


class ExecutionGrantRow(Base):
    """For whom a running execution acts. Its token is worth something only while this row exists."""

    __tablename__ = "execution_grants"

    execution_id: Mapped[UUID] = mapped_column(primary_key=True)
    token_id: Mapped[UUID]
    """Differs for each attempt, so that the token of a lost worker is worth nothing."""
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    api_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"), index=True)
    owner_ids: Mapped[list[UUID]] = mapped_column(ARRAY(Uuid))
    depth: Mapped[int]
    expires_at: Mapped[datetime] = mapped_column(index=True)

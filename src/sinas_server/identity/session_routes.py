"""The routes of sessions: each user's own at `/auth/sessions`, anyone's at `/users/{id}/sessions`."""

from datetime import datetime
from typing import Annotated, TypeAlias
from uuid import UUID

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from sinas_server.identity.guard import require_on
from sinas_server.identity.sessions import end_of, live
from sinas_server.identity.tables import RefreshTokenRow, UserRow
from sinas_server.identity.users import UserId
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import NotFoundError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.unit import Db

own_sessions_router = new_router("/auth/sessions", "auth")
user_sessions_router = new_router("/users/{user_id}/sessions", "users")

SessionId: TypeAlias = Annotated[UUID, Path(description="The session's id.")]
MOST = 1000


class SessionResponse(BaseModel):
    """A session that is going on."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID = Field(description="Its id.")
    created_at: datetime = Field(description="When the user logged in.")
    last_used_at: datetime = Field(description="When it last got an access token, or began.")
    expires_at: datetime = Field(description="When it ends by itself.")
    ip: str | None = Field(description="The address the login came from.")
    user_agent: str | None = Field(description="What the client that logged in calls itself.")
    is_current: bool = Field(description="Whether this request belongs to it.")


@own_sessions_router.get("", summary="List my sessions")
async def list_sessions(db: CurrentDb, caller: CurrentCaller) -> list[SessionResponse]:
    """The caller's sessions, newest first."""
    caller.require("users", "read", caller.id)
    return await _sessions(db, caller, caller.id)


@own_sessions_router.delete("/{session_id}", status_code=204, summary="End one of my sessions")
async def end_session(session_id: SessionId, db: CurrentDb, caller: CurrentCaller) -> None:
    """Its tokens stop working at once."""
    caller.require("users", "update", caller.id)
    await _end(db, caller, caller.id, session_id)


@user_sessions_router.get("", summary="List the sessions of a user")
async def list_sessions_of(user_id: UserId, db: CurrentDb, caller: CurrentCaller) -> list[SessionResponse]:
    """Newest first; those of others take `sinas.users.update:all`, since they tell where people are."""
    await changeable_user(db, caller, user_id)
    return await _sessions(db, caller, user_id)


@user_sessions_router.delete("", status_code=204, summary="End all sessions of a user")
async def end_sessions_of(user_id: UserId, db: CurrentDb, caller: CurrentCaller) -> None:
    """Their tokens stop working at once; API keys go on."""
    email = await changeable_user(db, caller, user_id)
    count = await end_of(db, user_id)
    await audit(db, caller, "end_sessions", ("user", email), {"count": count})


@user_sessions_router.delete("/{session_id}", status_code=204, summary="End a session of a user")
async def end_session_of(user_id: UserId, session_id: SessionId, db: CurrentDb, caller: CurrentCaller) -> None:
    """Its tokens stop working at once."""
    await changeable_user(db, caller, user_id)
    await _end(db, caller, user_id, session_id)


async def changeable_user(db: Db, caller: Caller, user_id: UUID) -> str:
    """The e-mail address of a user whom the caller may change. Raises `ForbiddenError` or `NotFoundError`."""
    email = (await db.execute(select(UserRow.email).where(UserRow.id == user_id))).scalar_one_or_none()
    require_on(caller, "users", "update", user_id if email is not None else None, "User")
    if email is None:
        raise NotFoundError("User not found")
    return email


async def _sessions(db: Db, caller: Caller, user_id: UUID) -> list[SessionResponse]:
    shown = select(*RefreshTokenRow.__table__.c, (RefreshTokenRow.id == caller.credential).label("is_current"))
    shown = shown.where(RefreshTokenRow.user_id == user_id, live())
    rows = await db.execute(shown.order_by(RefreshTokenRow.created_at.desc(), RefreshTokenRow.id).limit(MOST))
    return [SessionResponse.model_validate(row) for row in rows]


async def _end(db: Db, caller: Caller, user_id: UUID, session_id: UUID) -> None:
    if not await end_of(db, user_id, only=session_id):
        raise NotFoundError("Session not found")
    await audit(db, caller, "end", ("session", str(session_id)), {"user_id": str(user_id)})

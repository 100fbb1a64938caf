"""Sessions: begun by whatever proves who someone is, kept going by a refresh token, listed and ended."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, insert, select, update

from sinas_server.identity.resolve import Identified, identify
from sinas_server.identity.tables import RefreshTokenRow, UserRow
from sinas_server.identity.tokens import SessionToken, mint_session_token, new_refresh_token
from sinas_server.kernel.errors import UnauthorizedError
from sinas_server.kernel.runtime import Credentials, Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import hash_token


@dataclass(frozen=True)
class Client:
    """Where a login comes from, for the list of sessions."""

    address: str | None
    user_agent: str | None


@dataclass(frozen=True)
class Begun:
    """A session within the transaction that makes it."""

    token: SessionToken
    refresh_token: str


@dataclass(frozen=True)
class Session:
    """A session that has begun. `expires_in`: life of the access token in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    identified: Identified


def live() -> ColumnElement[bool]:
    """Which sessions are going on."""
    return and_(RefreshTokenRow.revoked_at.is_(None), RefreshTokenRow.expires_at > func.now())


async def begin(db: Db, runtime: Runtime, user_id: UUID, client: Client) -> Begun:
    """Begin a session of someone whose identity is proven; `complete` it once the transaction is committed."""
    refresh_token = new_refresh_token()
    values = {
        "user_id": user_id,
        "token_hash": hash_token(runtime.settings.signing_key, refresh_token),
        "expires_at": now() + timedelta(days=runtime.settings.refresh_token_expire_days),
        "ip": client.address,
        "user_agent": client.user_agent,
    }
    made = await db.execute(insert(RefreshTokenRow).values(values).returning(RefreshTokenRow.id))
    await db.execute(update(UserRow).where(UserRow.id == user_id).values(last_login_at=func.now()))
    return Begun(SessionToken(user_id, made.scalar_one()), refresh_token)


async def complete(runtime: Runtime, begun: Begun) -> Session:
    """The session as its user gets it. Raises `UnauthorizedError` if the user was deactivated meanwhile."""
    access_token, expires_in = _access_token(runtime, begun.token)
    identified = await identify(runtime, Credentials(bearer=access_token))
    return Session(access_token, begun.refresh_token, expires_in, identified)


def _access_token(runtime: Runtime, token: SessionToken) -> tuple[str, int]:
    minutes = runtime.settings.access_token_expire_minutes
    return mint_session_token(runtime.settings.signing_key, token, minutes), minutes * 60


async def refresh(runtime: Runtime, refresh_token: str) -> tuple[str, int]:
    """A new access token and its life in seconds. Raises `UnauthorizedError`."""
    active = select(UserRow.id).where(UserRow.id == RefreshTokenRow.user_id, UserRow.is_active).exists()
    fingerprint = hash_token(runtime.settings.signing_key, refresh_token)
    # `read`, though it writes: doing it twice is the same as once, so it may be repeated after a lost connection.
    rows = await runtime.database.read(
        update(RefreshTokenRow)
        .where(RefreshTokenRow.token_hash == fingerprint, live(), active)
        .values(last_used_at=func.now())
        .returning(RefreshTokenRow.id, RefreshTokenRow.user_id)
    )
    if not rows:
        raise UnauthorizedError("Invalid or expired refresh token")
    return _access_token(runtime, SessionToken(rows[0].user_id, rows[0].id))


async def end(runtime: Runtime, refresh_token: str) -> None:
    """Revoke the session of a refresh token, if there is one."""
    fingerprint = hash_token(runtime.settings.signing_key, refresh_token)
    await runtime.database.rows(
        update(RefreshTokenRow).where(RefreshTokenRow.token_hash == fingerprint, live()).values(revoked_at=func.now())
    )


async def end_of(db: Db, user_id: UUID, *, only: UUID | None = None, besides: UUID | None = None) -> int:
    """Revoke the sessions of a user: all, `only` this one, or all `besides` this one. How many there were."""
    gone = update(RefreshTokenRow).where(RefreshTokenRow.user_id == user_id, live())
    if only is not None:
        gone = gone.where(RefreshTokenRow.id == only)
    if besides is not None:
        gone = gone.where(RefreshTokenRow.id != besides)
    return len((await db.execute(gone.values(revoked_at=func.now()).returning(RefreshTokenRow.id))).all())

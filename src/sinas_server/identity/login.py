"""Logging in with a code from a mail, and the sessions that follow."""

import hmac
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from sinas_server.identity.mail import login_mail, post
from sinas_server.identity.members import join_first_roles
from sinas_server.identity.resolve import Identified, identify
from sinas_server.identity.tables import OtpSessionRow, RefreshTokenRow, UserRow
from sinas_server.identity.tokens import SessionToken, mint_session_token, new_login_code, new_refresh_token
from sinas_server.kernel.errors import BadRequestError, UnauthorizedError
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Credentials, Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import hash_token

WRONG_CODE = "Invalid or expired OTP"


@dataclass(frozen=True)
class Client:
    """Where a login comes from, for the list of sessions."""

    address: str | None
    user_agent: str | None


@dataclass(frozen=True)
class Session:
    """A session that has begun. `expires_in`: life of the access token in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int
    identified: Identified


def _hash(runtime: Runtime, session_id: UUID, code: str) -> str:
    # Bound to its session: a stored hash says nothing about the same code elsewhere.
    return hash_token(runtime.settings.signing_key, f"otp:{session_id}:{code}")


async def start(runtime: Runtime, email: str) -> UUID:
    """Make a login code for an address and mail it; the same statements run whether the address is known or not."""
    session_id, code = uuid4(), new_login_code()
    minutes = runtime.settings.otp_expire_minutes
    async with runtime.database.unit() as db:
        is_active = (await db.execute(select(UserRow.is_active).where(UserRow.email == email))).scalar_one_or_none()
        welcome = is_active or (is_active is None and runtime.settings.signup == "open")
        await db.execute(
            insert(OtpSessionRow).values(
                id=session_id,
                email=email,
                code_hash=_hash(runtime, session_id, code),
                expires_at=now() + timedelta(minutes=minutes),
            )
        )
        await post(db, runtime, login_mail(email, code, minutes), deliver=welcome)
    return session_id


async def verify(runtime: Runtime, session_id: UUID, code: str, client: Client) -> Session:
    """Begin a session with a login code. Raises `BadRequestError` for a wrong, used, expired or exhausted one."""
    email = await _spend_attempt(runtime, session_id, code.strip())
    refresh_token = new_refresh_token()
    async with runtime.database.unit() as db:
        used = update(OtpSessionRow).where(OtpSessionRow.id == session_id, OtpSessionRow.used_at.is_(None))
        if (await db.execute(used.values(used_at=func.now()).returning(OtpSessionRow.id))).first() is None:
            raise BadRequestError(WRONG_CODE)
        user_id = await _enter(db, runtime, email)
        values = {
            "user_id": user_id,
            "token_hash": hash_token(runtime.settings.signing_key, refresh_token),
            "expires_at": now() + timedelta(days=runtime.settings.refresh_token_expire_days),
            "ip": client.address,
            "user_agent": client.user_agent,
        }
        made = await db.execute(insert(RefreshTokenRow).values(values).returning(RefreshTokenRow.id))
        session_token = SessionToken(user_id, made.scalar_one())
    access_token, expires_in = _access_token(runtime, session_token)
    identified = await identify(runtime, Credentials(bearer=access_token))
    return Session(access_token, refresh_token, expires_in, identified)


async def _spend_attempt(runtime: Runtime, session_id: UUID, code: str) -> str:
    """The address whose code this is. The attempt counts even if the request breaks off, so guesses cannot race."""
    rows = await runtime.database.rows(
        update(OtpSessionRow)
        .where(
            OtpSessionRow.id == session_id,
            OtpSessionRow.used_at.is_(None),
            OtpSessionRow.expires_at > func.now(),
            OtpSessionRow.attempts < runtime.settings.otp_max_attempts,
        )
        .values(attempts=OtpSessionRow.attempts + 1)
        .returning(OtpSessionRow.email, OtpSessionRow.code_hash)
    )
    if not rows or not hmac.compare_digest(rows[0].code_hash, _hash(runtime, session_id, code)):
        raise BadRequestError(WRONG_CODE)
    return str(rows[0].email)


async def _enter(db: Db, runtime: Runtime, email: str) -> UUID:
    """The id of the user who logs in, created if need be and allowed."""
    known = update(UserRow).where(UserRow.email == email, UserRow.is_active).values(last_login_at=func.now())
    user_id = (await db.execute(known.returning(UserRow.id))).scalar_one_or_none()
    if user_id is not None:
        return user_id
    if runtime.settings.signup == "closed":
        raise BadRequestError(WRONG_CODE)
    new = upsert(UserRow).values(email=email, last_login_at=func.now()).on_conflict_do_nothing().returning(UserRow.id)
    user_id = (await db.execute(new)).scalar_one_or_none()
    if user_id is None:  # the user exists and is deactivated
        raise BadRequestError(WRONG_CODE)
    await join_first_roles(db, user_id, email)
    await audit(db, None, "sign_up", ("user", email))
    return user_id


def _access_token(runtime: Runtime, token: SessionToken) -> tuple[str, int]:
    minutes = runtime.settings.access_token_expire_minutes
    return mint_session_token(runtime.settings.signing_key, token, minutes), minutes * 60


async def refresh(runtime: Runtime, refresh_token: str) -> tuple[str, int]:
    """A new access token and its life in seconds. Raises `UnauthorizedError`."""
    rows = await runtime.database.read(
        select(RefreshTokenRow.id, RefreshTokenRow.user_id)
        .join(UserRow, UserRow.id == RefreshTokenRow.user_id)
        .where(
            RefreshTokenRow.token_hash == hash_token(runtime.settings.signing_key, refresh_token),
            RefreshTokenRow.revoked_at.is_(None),
            RefreshTokenRow.expires_at > func.now(),
            UserRow.is_active,
        )
    )
    if not rows:
        raise UnauthorizedError("Invalid or expired refresh token")
    return _access_token(runtime, SessionToken(rows[0].user_id, rows[0].id))


async def end(runtime: Runtime, refresh_token: str) -> None:
    """Revoke the session of a refresh token, if there is one."""
    await runtime.database.rows(
        update(RefreshTokenRow)
        .where(
            RefreshTokenRow.token_hash == hash_token(runtime.settings.signing_key, refresh_token),
            RefreshTokenRow.revoked_at.is_(None),
        )
        .values(revoked_at=func.now())
    )

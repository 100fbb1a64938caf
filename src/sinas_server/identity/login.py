"""Codes that are mailed: they prove that someone reads the mail of an address, and are good for one thing, once."""

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from sinas_server.identity.mail import code_letter, post_letter
from sinas_server.identity.members import join_first_roles
from sinas_server.identity.sessions import Client, Session, begin, complete
from sinas_server.identity.tables import OtpSessionRow, UserRow
from sinas_server.identity.tokens import new_login_code
from sinas_server.kernel.errors import BadRequestError
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import hash_token

WRONG_CODE = "Invalid or expired OTP"
RESET = "reset"
"""The purpose of a code that sets a password. That of a login is the mode it was asked in, so that a code sent for a
login without a password is worth nothing once passwords are needed."""


def _hash(runtime: Runtime, session_id: UUID, code: str) -> str:
    # Bound to its session: a stored hash says nothing about the same code elsewhere.
    return hash_token(runtime.settings.signing_key, f"otp:{session_id}:{code}")


async def send_code(runtime: Runtime, email: str, purpose: str) -> UUID:
    """Make a code for an address and mail it; the same statements run whether the address is known or not."""
    session_id, code = uuid4(), new_login_code()
    minutes = runtime.settings.otp_expire_minutes
    async with runtime.database.unit() as db:
        is_active = (await db.execute(select(UserRow.is_active).where(UserRow.email == email))).scalar_one_or_none()
        welcome = is_active or (is_active is None and runtime.settings.signup == "open")
        await db.execute(
            insert(OtpSessionRow).values(
                id=session_id,
                email=email,
                purpose=purpose,
                code_hash=_hash(runtime, session_id, code),
                expires_at=now() + timedelta(minutes=minutes),
            )
        )
        letter = code_letter(email, code, minutes, resets=purpose == RESET)
        await post_letter(db, runtime, letter, deliver=bool(welcome))
    return session_id


async def verify(runtime: Runtime, session_id: UUID, code: str, client: Client) -> Session:
    """Begin a session with a login code. Raises `BadRequestError` for a wrong, used, expired or exhausted one."""
    async with proven(runtime, runtime.settings.auth_mode, session_id, code) as (db, user_id):
        begun = await begin(db, runtime, user_id, client)
    return await complete(runtime, begun)


@asynccontextmanager
async def proven(runtime: Runtime, purpose: str, session_id: UUID, code: str) -> AsyncIterator[tuple[Db, UUID]]:
    """A transaction that uses up a code, for whoever reads the mail of its address; creates the user if need be.

    Raises `BadRequestError` for a code that is wrong, used, expired, exhausted or for another purpose.
    """
    email = await _spend_attempt(runtime, purpose, session_id, code.strip())
    async with runtime.database.unit() as db:
        used = update(OtpSessionRow).where(OtpSessionRow.id == session_id, OtpSessionRow.used_at.is_(None))
        if (await db.execute(used.values(used_at=func.now()).returning(OtpSessionRow.id))).first() is None:
            raise BadRequestError(WRONG_CODE)
        yield db, await _enter(db, runtime, email)


async def _spend_attempt(runtime: Runtime, purpose: str, session_id: UUID, code: str) -> str:
    """The address whose code this is. The attempt counts even if the request breaks off, so guesses cannot race."""
    rows = await runtime.database.rows(
        update(OtpSessionRow)
        .where(
            OtpSessionRow.id == session_id,
            OtpSessionRow.purpose == purpose,
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
    """The id of the user with this address, created if need be and allowed; locked, so that he stays active."""
    known = select(UserRow.id).where(UserRow.email == email, UserRow.is_active).with_for_update()
    user_id = (await db.execute(known)).scalar_one_or_none()
    if user_id is not None:
        return user_id
    if runtime.settings.signup == "closed":
        raise BadRequestError(WRONG_CODE)
    new = upsert(UserRow).values(email=email).on_conflict_do_nothing().returning(UserRow.id)
    user_id = (await db.execute(new)).scalar_one_or_none()
    if user_id is None:  # the user is deactivated, or was made by another login just now
        user_id = (await db.execute(known)).scalar_one_or_none()
        if user_id is None:
            raise BadRequestError(WRONG_CODE)
        return user_id
    await join_first_roles(db, user_id, email)
    await audit(db, None, "sign_up", ("user", email))
    return user_id

"""Passwords, where `AUTH_MODE` has them: checked, set, and known to nobody."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from sinas_server.identity.login import RESET, proven
from sinas_server.identity.sessions import Client, Session, begin, complete, end_of
from sinas_server.identity.tables import OtpSessionRow, PasswordRow, UserRow
from sinas_server.kernel.errors import BadRequestError, InvalidError
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.password import hash_password, is_outdated, matches

WRONG_PASSWORD = "Invalid e-mail address or password"  # noqa: S105 - a message
SWITCHED_OFF = "Passwords are switched off here (AUTH_MODE is otp)"


def require_passwords(runtime: Runtime) -> None:
    """Raise `BadRequestError` where people log in without passwords."""
    if runtime.settings.auth_mode == "otp":
        raise BadRequestError(SWITCHED_OFF)


async def new_hash(runtime: Runtime, password: str, field: str) -> str:
    """How to store a password that someone chose in this field of the body. Raises `InvalidError` if it is short."""
    least = runtime.settings.password_min_length
    if len(password) < least:
        raise InvalidError([(("body", field), f"must have at least {least} characters")])
    return await asyncio.to_thread(hash_password, password)


@dataclass(frozen=True)
class Checked:
    """Whose password it is, and since when."""

    user_id: UUID
    changed_at: datetime


async def check(runtime: Runtime, email: str, password: str) -> Checked:
    """The active user with this address and password.

    Raises `BadRequestError` otherwise, which takes as long whether the address is known or has a password or not.
    """
    rows = await runtime.database.read(
        select(UserRow.id, PasswordRow.hash, PasswordRow.changed_at)
        .join_from(PasswordRow, UserRow)
        .where(UserRow.email == email, UserRow.is_active)
    )
    stored = str(rows[0].hash) if rows else None
    if not await asyncio.to_thread(matches, stored, password) or stored is None:
        raise BadRequestError(WRONG_PASSWORD)
    found = Checked(rows[0].id, rows[0].changed_at)
    if is_outdated(stored):
        fresh = await asyncio.to_thread(hash_password, password)
        same = update(PasswordRow).where(PasswordRow.user_id == found.user_id, PasswordRow.hash == stored)
        await runtime.database.rows(same.values(hash=fresh))
    return found


async def log_in(runtime: Runtime, email: str, password: str, client: Client) -> Session:
    """Begin a session with a password. Raises `BadRequestError` for a wrong one or an unknown address."""
    found = await check(runtime, email, password)
    async with runtime.database.unit() as db:
        await hold(db, found)
        begun = await begin(db, runtime, found.user_id, client)
    return await complete(runtime, begun)


async def hold(db: Db, found: Checked) -> None:
    """Lock what was checked until the transaction ends.

    Raises `BadRequestError` if the user was deactivated or the password changed while it was being checked.
    """
    active = select(UserRow.id).where(UserRow.id == found.user_id, UserRow.is_active)
    same = select(PasswordRow.user_id).where(
        PasswordRow.user_id == found.user_id, PasswordRow.changed_at == found.changed_at
    )
    for still in (active, same):
        if (await db.execute(still.with_for_update())).first() is None:
            raise BadRequestError(WRONG_PASSWORD)


async def reset(runtime: Runtime, session_id: UUID, code: str, hashed: str) -> None:
    """Set the password of whoever has the mailed code, and end the user's sessions. Raises `BadRequestError`."""
    async with proven(runtime, RESET, session_id, code) as (db, user_id):
        await store(db, user_id, hashed)
        await end_of(db, user_id)
        email = (await db.execute(select(UserRow.email).where(UserRow.id == user_id))).scalar_one()
        await audit(db, None, "reset_password", ("user", email))


async def store(db: Db, user_id: UUID, hashed: str) -> None:
    """Make this the user's password; codes that were mailed because of the old one are of no more use."""
    new = upsert(PasswordRow).values(user_id=user_id, hash=hashed)
    await db.execute(
        new.on_conflict_do_update(
            index_elements=["user_id"], set_={"hash": new.excluded.hash, "changed_at": func.now()}
        )
    )
    address = select(UserRow.email).where(UserRow.id == user_id).scalar_subquery()
    await db.execute(delete(OtpSessionRow).where(OtpSessionRow.email == address))

"""What every installation starts with: the built-in roles, an administrator and, embedded, an administrator's key."""

import asyncio
import os
from pathlib import Path
from uuid import UUID

import structlog
from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from sinas_server.identity.guard import administrators
from sinas_server.identity.reference import ADMINS, DESCRIPTIONS, EVERYTHING, default_permissions
from sinas_server.identity.resolve import BY_API_KEY, granted
from sinas_server.identity.tables import ApiKeyRow, RolePermissionRow, RoleRow, UserRoleRow, UserRow
from sinas_server.identity.tokens import new_api_key
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.crypto import hash_token

log = structlog.get_logger()
ADMIN_KEY_FILE = "admin-key"
ADMIN_KEY_NAME = "admin-key of the data directory"
LOCK = 0x51AA5001
"""Several processes may start at once; they take turns (a transaction-level advisory lock)."""


async def bootstrap(runtime: Runtime) -> None:
    """Make sure of the built-in roles and an administrator; safe at every start, and by several processes at once.

    A default permission is given once: one that an administrator took away stays away. Embedded, an administrator's
    API key is written to `admin-key` in the data directory, again only if it is missing or no longer works.
    """
    async with runtime.database.unit() as db:
        await db.execute(select(func.pg_advisory_xact_lock(LOCK)))
        for name, keys in default_permissions(runtime.kinds.values(), runtime.resources).items():
            await _ensure_role(db, name, keys)
        admin_id = await _ensure_administrator(db, runtime.settings.superadmin_email.lower())
        if runtime.settings.embedded:
            await _ensure_admin_key(db, runtime, admin_id)


async def _ensure_role(db: Db, name: str, keys: list[str]) -> None:
    await db.execute(
        upsert(RoleRow)
        .values(name=name, description=DESCRIPTIONS[name])
        .on_conflict_do_nothing(index_elements=["name"])
    )
    role = (await db.execute(select(RoleRow).where(RoleRow.name == name))).scalar_one()
    fresh = [key for key in keys if key not in role.seeded]
    if not fresh:
        return
    rows = [{"role_id": role.id, "permission_key": key, "permission_value": True} for key in fresh]
    await db.execute(upsert(RolePermissionRow).on_conflict_do_nothing(), rows)
    await db.execute(update(RoleRow).where(RoleRow.id == role.id).values(seeded=[*role.seeded, *fresh]))


async def _ensure_administrator(db: Db, email: str) -> UUID:
    created = await db.execute(
        upsert(UserRow).values(email=email).on_conflict_do_nothing(index_elements=["email"]).returning(UserRow.id)
    )
    new_id = created.scalar_one_or_none()
    user_id = new_id or (await db.execute(select(UserRow.id).where(UserRow.email == email))).scalar_one()
    if new_id or not await administrators(db):
        role_id = select(RoleRow.id).where(RoleRow.name == ADMINS).scalar_subquery()
        await db.execute(upsert(UserRoleRow).values(user_id=user_id, role_id=role_id).on_conflict_do_nothing())
        await audit(db, None, "make_administrator", ("user", email))
        log.info("administrator ready", email=email)
    return user_id


async def _ensure_admin_key(db: Db, runtime: Runtime, admin_id: UUID) -> None:
    path = runtime.settings.sinas_data_dir / ADMIN_KEY_FILE
    if await _works(db, runtime, path):
        return
    key, prefix = new_api_key()
    # Keys that an earlier file held are of no more use to anyone.
    await db.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.name == ADMIN_KEY_NAME, ApiKeyRow.user_id == admin_id, ApiKeyRow.is_active)
        .values(is_active=False, revoked_at=func.now())
    )
    await db.execute(
        insert(ApiKeyRow).values(
            user_id=admin_id,
            name=ADMIN_KEY_NAME,
            key_hash=hash_token(runtime.settings.signing_key, key),
            key_prefix=prefix,
            permissions={EVERYTHING: True},
        )
    )
    # Before the commit and under the lock: a file whose key was rolled back is replaced at the next start, and two
    # processes never write different keys.
    await asyncio.to_thread(_write_private, path, key + "\n")


async def _works(db: Db, runtime: Runtime, path: Path) -> bool:
    key = await asyncio.to_thread(_read, path)
    if not key:
        return False
    found = (await db.execute(BY_API_KEY, {"hash": hash_token(runtime.settings.signing_key, key)})).first()
    return found is not None and granted(found.key_permissions).allows(EVERYTHING)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)

"""Logging in at an OpenID Connect provider: which user its claims mean, and which roles they give."""

import base64
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import structlog
from email_validator import EmailNotValidError, validate_email
from pydantic import JsonValue
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from sinas_server.backends.oidc import Claims, Flow, OidcProvider, ProviderUnavailableError, RefusedError
from sinas_server.identity.guard import LOCK, administrators
from sinas_server.identity.members import join_first_roles
from sinas_server.identity.once import keep, take
from sinas_server.identity.sessions import Client, Session, begin, complete
from sinas_server.identity.tables import RoleRow, UserRoleRow, UserRow
from sinas_server.kernel.errors import BadRequestError, ForbiddenError, NotFoundError, UnavailableError
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

log = structlog.get_logger()
FLOW_SECONDS = 600
CODE_SECONDS = 60
WRONG_TOKEN = "Invalid or expired token"  # noqa: S105 - a message
WRONG_LOGIN = "This login was not begun in this browser, or too long ago; begin again"
NO_ACCOUNT = "You have no account here; ask your administrator"
MAX_ID = 255


def provider_of(runtime: Runtime) -> OidcProvider:
    """The provider. Raises `NotFoundError` where none is configured."""
    if runtime.oidc is None:
        raise NotFoundError("No OpenID Connect provider is configured here")
    return runtime.oidc


def targets(runtime: Runtime) -> tuple[str, ...]:
    """Where a login may return to, the default first."""
    return runtime.settings.oidc_redirect_uris or (f"{runtime.settings.public_url}/",)


def callback_url(runtime: Runtime) -> str:
    """Where the provider sends the browser back to; it must be registered there."""
    return f"{runtime.settings.public_url}/auth/oidc/callback"


@asynccontextmanager
async def _explained() -> AsyncIterator[None]:
    try:
        yield
    except RefusedError as error:
        log.warning("a login at the OpenID Connect provider was refused", reason=str(error))
        raise BadRequestError(WRONG_TOKEN) from error
    except ProviderUnavailableError as error:
        log.warning("the OpenID Connect provider cannot be used", reason=str(error))
        raise UnavailableError("the login provider does not answer; try again", {"Retry-After": "5"}) from error


async def start(runtime: Runtime, browser: str, redirect_uri: str | None, state: str) -> str:
    """Where to send the browser for a login that ends at `redirect_uri` with the application's own `state`.

    `browser` is the secret in its cookie. Raises `BadRequestError` for a place that is not allowed.
    """
    provider, allowed = provider_of(runtime), targets(runtime)
    if redirect_uri is not None and redirect_uri not in allowed:
        raise BadRequestError("redirect_uri is not one of OIDC_REDIRECT_URIS")
    verifier, nonce = secrets.token_urlsafe(48), secrets.token_urlsafe(32)
    remembered = {
        "browser": browser,
        "verifier": verifier,
        "nonce": nonce,
        "redirect_uri": redirect_uri or allowed[0],
        "state": state,
    }
    name = await keep(runtime, "oidc-flow", remembered, FLOW_SECONDS)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    async with _explained():
        return await provider.authorization_url(Flow(callback_url(runtime), name, nonce, challenge))


async def flow_of(runtime: Runtime, browser: str | None, state: str) -> dict[str, str]:
    """The login that `start` began in this browser, once. Raises `BadRequestError`."""
    flow = await take(runtime, "oidc-flow", state)
    if flow is None or browser is None or not secrets.compare_digest(flow["browser"].encode(), browser.encode()):
        raise BadRequestError(WRONG_LOGIN)
    return flow


async def finish(runtime: Runtime, flow: dict[str, str], code: str) -> str:
    """A code that begins the session, once and soon, for the user who logged in at the provider."""
    async with _explained():
        claims = await provider_of(runtime).redeem(code, callback_url(runtime), flow["verifier"], flow["nonce"])
    async with runtime.database.unit() as db:
        user_id = await enter(db, runtime, claims)
    return await keep(runtime, "oidc-code", {"user_id": str(user_id)}, CODE_SECONDS)


async def session_for_code(runtime: Runtime, code: str, client: Client) -> Session:
    """Begin the session that `finish` prepared. Raises `BadRequestError`."""
    kept = await take(runtime, "oidc-code", code)
    if kept is None:
        raise BadRequestError("Invalid or expired code")
    user_id = UUID(kept["user_id"])
    async with runtime.database.unit() as db:
        active = select(UserRow.id).where(UserRow.id == user_id, UserRow.is_active).with_for_update()
        if (await db.execute(active)).first() is None:
            raise ForbiddenError(NO_ACCOUNT)
        begun = await begin(db, runtime, user_id, client)
    return await complete(runtime, begun)


async def session_for_token(runtime: Runtime, id_token: str, nonce: str | None, client: Client) -> Session:
    """Begin a session for the user of an ID token. Raises `BadRequestError`, `ForbiddenError`, `UnavailableError`."""
    async with _explained():
        claims = await provider_of(runtime).verify(id_token, nonce)
    async with runtime.database.unit() as db:
        begun = await begin(db, runtime, await enter(db, runtime, claims), client)
    return await complete(runtime, begun)


async def enter(db: Db, runtime: Runtime, claims: Claims) -> UUID:
    """The id of the active user whom these claims mean, linked or created if need be and allowed; locked.

    Users are found by the provider's id for them; by e-mail address only if the provider has verified it.
    Raises `ForbiddenError`.
    """
    provider, subject = provider_of(runtime).issuer, str(claims["sub"])
    if len(subject) > MAX_ID or not subject.isprintable():
        raise BadRequestError(WRONG_TOKEN)
    user = await _linked(db, provider, subject)
    is_new = False
    if user is None:
        email = _verified_address(claims)
        is_new = await _create(db, runtime, email)
        user = await _link(db, email, provider, subject)
    if not user.is_active:
        raise ForbiddenError(NO_ACCOUNT)
    has_role = await _take_over_roles(db, runtime, user, claims)
    if is_new and not has_role:
        await join_first_roles(db, user.id, user.email)
    return user.id


async def _linked(db: Db, provider: str, subject: str) -> UserRow | None:
    """The user known by the provider's id, locked."""
    known = (UserRow.external_auth_provider == provider) & (UserRow.external_auth_id == subject)
    return await db.scalar(select(UserRow).where(known).with_for_update())


def _verified_address(claims: Claims) -> str:
    email = claims.get("email")
    if not isinstance(email, str) or claims.get("email_verified") is not True:
        raise ForbiddenError("The login provider does not say that your e-mail address is verified")
    try:
        return validate_email(email, check_deliverability=False).normalized.lower()
    except EmailNotValidError as error:
        raise ForbiddenError("The login provider gives no e-mail address that can be used here") from error


async def _create(db: Db, runtime: Runtime, email: str) -> bool:
    if runtime.settings.signup == "closed":
        return False
    new = upsert(UserRow).values(email=email).on_conflict_do_nothing().returning(UserRow.id)
    if (await db.execute(new)).first() is None:
        return False
    await audit(db, None, "sign_up", ("user", email), {"via": "oidc"})
    return True


async def _link(db: Db, email: str, provider: str, subject: str) -> UserRow:
    """The user with this address, from now on known by the provider's id; one known by another id is someone else."""
    values = {"external_auth_provider": provider, "external_auth_id": subject, "updated_at": func.now()}
    free = update(UserRow).where(UserRow.email == email, UserRow.external_auth_id.is_(None), UserRow.is_active)
    user = (await db.execute(free.values(values).returning(UserRow))).scalar_one_or_none()
    if user is None:
        user = await _linked(db, provider, subject)  # by another login of theirs, just now
        if user is None:
            raise ForbiddenError(NO_ACCOUNT)
        return user
    await audit(db, None, "link", ("user", email), {"provider": provider, "id": subject})
    return user


async def _take_over_roles(db: Db, runtime: Runtime, user: UserRow, claims: Claims) -> bool:
    """Make the memberships of the mapped roles what the claims say; whether they give any.

    The last administrator stays one: otherwise a slip at the provider could lock everyone out.
    """
    mapping = runtime.settings.oidc_role_map
    if not mapping:
        return False
    given = {mapping[value] for value in claimed(claims, runtime.settings.oidc_role_claim or "") if value in mapping}
    member = select(UserRoleRow.role_id).where(UserRoleRow.user_id == user.id)
    shown = select(RoleRow.id, RoleRow.name, RoleRow.id.in_(member).label("is_member"))
    rows = (await db.execute(shown.where(RoleRow.name.in_(set(mapping.values()))).order_by(RoleRow.name))).all()
    for missing in sorted(given - {row.name for row in rows}):
        log.warning("OIDC_ROLE_MAP names a role that does not exist", role=missing)
    for row in rows:
        if row.name in given and not row.is_member:
            await db.execute(upsert(UserRoleRow).values(user_id=user.id, role_id=row.id).on_conflict_do_nothing())
            await audit(db, None, "add_member", ("role", row.name), {"user": user.email, "via": "oidc"})
        elif row.name not in given and row.is_member:
            await _leave(db, user, row.id, row.name)
    return any(row.name in given for row in rows)


async def _leave(db: Db, user: UserRow, role_id: UUID, name: str) -> None:
    async with db.begin_nested() as attempt:
        await db.execute(select(func.pg_advisory_xact_lock(LOCK)))
        await db.execute(delete(UserRoleRow).where(UserRoleRow.user_id == user.id, UserRoleRow.role_id == role_id))
        if not await administrators(db):
            await attempt.rollback()
            log.warning("the last administrator stays one, though the provider's claims say otherwise", user=user.email)
            return
    await audit(db, None, "remove_member", ("role", name), {"user": user.email, "via": "oidc"})


def claimed(claims: Claims, path: str) -> list[str]:
    """The values of a claim: a text or a list of them, found by its name or by a dotted path into objects."""
    value: JsonValue = claims.get(path)
    if value is None:
        value = claims
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]

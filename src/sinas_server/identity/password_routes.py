"""The routes of passwords: change the own one, set a forgotten one with a mailed code, set that of another user."""

from typing import Annotated, TypeAlias
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, EmailStr, Field
from sqlalchemy import select

from sinas_server.identity import passwords
from sinas_server.identity.answers import LoginResponse, client_of
from sinas_server.identity.guard import require_for_role
from sinas_server.identity.limits import limit_login, limit_verification
from sinas_server.identity.login import RESET, send_code
from sinas_server.identity.session_routes import changeable_user
from sinas_server.identity.sessions import end_of
from sinas_server.identity.tables import RolePermissionRow, UserRoleRow
from sinas_server.identity.users import UserId
from sinas_server.kernel.errors import BadRequestError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kit.password import MAX_LENGTH

own_password_router = new_router("/auth/password", "auth")
user_password_router = new_router("/users/{user_id}/password", "users")

NewPassword: TypeAlias = Annotated[
    str, Field(max_length=MAX_LENGTH, description="At least as long as `PASSWORD_MIN_LENGTH` says.")
]


class PasswordChange(BaseModel):
    """A new password, and the old one as proof."""

    old_password: str = Field(max_length=MAX_LENGTH, description="The password so far.")
    new_password: NewPassword


class PasswordForgotten(BaseModel):
    """Whose password is forgotten, or was never set."""

    email: EmailStr = Field(max_length=320, description="Where the code is sent.")


class PasswordReset(BaseModel):
    """A new password, and the code from the mail as proof."""

    session_id: UUID = Field(description="From `/auth/password/forgot`.")
    otp_code: str = Field(max_length=64, description="The six digits.")
    new_password: NewPassword


class PasswordSet(BaseModel):
    """A new password for another user."""

    new_password: NewPassword


@own_password_router.post("", status_code=204, summary="Change my password")
async def change_password(
    body: PasswordChange, request: Request, db: CurrentDb, caller: CurrentCaller, runtime: Run
) -> None:
    """Ends the caller's other sessions. A wrong old password is a 400."""
    passwords.require_passwords(runtime)
    caller.require("users", "update", caller.id)
    await limit_login(runtime, client_of(request).address, caller.email)
    found = await passwords.check(runtime, caller.email, body.old_password)
    hashed = await passwords.new_hash(runtime, body.new_password, "new_password")
    await passwords.hold(db, found)
    await passwords.store(db, caller.id, hashed)
    await end_of(db, caller.id, besides=caller.credential)
    await audit(db, caller, "change_password", ("user", caller.email))


@own_password_router.post("/forgot", summary="Ask for a code to set a password")
async def forgot_password(body: PasswordForgotten, request: Request, runtime: Run) -> LoginResponse:
    """Send six digits to the address. The answer does not tell whether the address is known."""
    passwords.require_passwords(runtime)
    email = body.email.lower()
    await limit_login(runtime, client_of(request).address, email)
    session_id = await send_code(runtime, email, RESET)
    return LoginResponse(message="A code has been sent to your e-mail address", session_id=session_id)


@own_password_router.post("/reset", status_code=204, summary="Set a password with the code")
async def reset_password(body: PasswordReset, request: Request, runtime: Run) -> None:
    """Ends all sessions of the user, who then logs in. A wrong or expired code is a 400; a code works once."""
    passwords.require_passwords(runtime)
    await limit_verification(runtime, client_of(request).address)
    hashed = await passwords.new_hash(runtime, body.new_password, "new_password")
    await passwords.reset(runtime, body.session_id, body.otp_code, hashed)


@user_password_router.put("", status_code=204, summary="Set the password of another user")
async def set_password(user_id: UserId, body: PasswordSet, db: CurrentDb, caller: CurrentCaller, runtime: Run) -> None:
    """Ends all sessions of the user. Takes everything the user may do, since one could log in with it."""
    passwords.require_passwords(runtime)
    email = await changeable_user(db, caller, user_id)
    if user_id == caller.id:
        raise BadRequestError("Change your own password with `POST /auth/password`")
    keys = (
        select(RolePermissionRow.permission_key)
        .join(UserRoleRow, UserRoleRow.role_id == RolePermissionRow.role_id)
        .where(UserRoleRow.user_id == user_id, RolePermissionRow.permission_value)
    )
    require_for_role(caller, sorted((await db.execute(keys)).scalars()), f"{email} holds")
    await passwords.store(db, user_id, await passwords.new_hash(runtime, body.new_password, "new_password"))
    count = await end_of(db, user_id)
    await audit(db, caller, "set_password", ("user", email), {"ended_sessions": count})

"""The runtime routes of identity: login and sessions, who I am, what I may do, and what this server is."""

from importlib.metadata import version
from typing import Literal
from uuid import UUID

from fastapi import Request, Response
from pydantic import BaseModel, EmailStr, Field

from sinas_server.identity import login as logins
from sinas_server.identity import passwords, sessions
from sinas_server.identity.answers import (
    AuthUserResponse,
    LoginResponse,
    OTPVerifyResponse,
    client_of,
    session_answer,
    user_fields,
)
from sinas_server.identity.limits import limit_login, limit_verification
from sinas_server.identity.resolve import identify
from sinas_server.kernel.access import check_key
from sinas_server.kernel.errors import InvalidError, UnavailableError
from sinas_server.kernel.heartbeat import read_heartbeats
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, credentials, new_router
from sinas_server.kernel.security_schemes import SECURITY
from sinas_server.kit.password import MAX_LENGTH

auth_router = new_router("", "auth")
MAX_CHECKS = 1000


class LoginRequest(BaseModel):
    """Who wants to log in."""

    email: EmailStr = Field(max_length=320, description="Who logs in, and where a login code is sent.")
    password: str | None = Field(
        None, max_length=MAX_LENGTH, description="Needed if `auth_mode` of `/info` names it, otherwise ignored."
    )


class OTPVerifyRequest(BaseModel):
    """The code from the mail."""

    session_id: UUID = Field(description="From `/auth/login`.")
    otp_code: str = Field(max_length=64, description="The six digits.")


class RefreshRequest(BaseModel):
    """A session's refresh token."""

    refresh_token: str = Field(max_length=1024, description="From `/auth/verify-otp` or `/auth/login`.")


class RefreshResponse(BaseModel):
    """A new access token for the same session."""

    access_token: str = Field(description="For `Authorization: Bearer`.")
    token_type: Literal["bearer"] = Field(description="How to send the access token.")
    expires_in: int = Field(description="Life of the access token, in seconds.")


class PermissionCheckRequest(BaseModel):
    """Permissions to check, of Sinas or of any application."""

    permissions: list[str] = Field(max_length=MAX_CHECKS, description="Permission keys.")
    logic: Literal["AND", "OR"] = Field("AND", description="Whether all of them are needed, or one.")


class PermissionCheckResult(BaseModel):
    """The answer for one permission."""

    permission: str = Field(description="As asked.")
    has_permission: bool = Field(description="Whether the caller holds it.")


class PermissionCheckResponse(BaseModel):
    """The answer as a whole and one by one."""

    result: bool = Field(description="Whether what `logic` asks for holds.")
    logic: str = Field(description="As asked.")
    checks: list[PermissionCheckResult] = Field(description="In the order asked.")


class InfoResponse(BaseModel):
    """What a client must know before it logs in."""

    auth_mode: Literal["otp", "password", "password+otp"] = Field(
        description="What people log in with: a mailed code, a password, or a password and then a mailed code."
    )
    version: str = Field(description="The server's version.")
    features: dict[str, bool] = Field(description="What is switched on.")


@auth_router.post("/auth/login", response_model=LoginResponse | OTPVerifyResponse, summary="Log in")
async def login(body: LoginRequest, request: Request, runtime: Run) -> Response:
    """Begin a login as `/info` says: `otp` mails a code, `password` answers with tokens, `password+otp` asks for both.

    The answer never tells whether the address is known. A wrong password is a 400.
    """
    email, mode = body.email.lower(), runtime.settings.auth_mode
    await limit_login(runtime, client_of(request).address, email)
    if mode != "otp" and body.password is None:
        raise InvalidError([(("body", "password"), "is needed to log in here")])
    if mode == "password":
        return session_answer(await passwords.log_in(runtime, email, body.password or "", client_of(request)))
    if mode == "password+otp":
        await passwords.check(runtime, email, body.password or "")
    session_id = await logins.send_code(runtime, email, mode)
    return JsonAnswer({"message": "A login code has been sent to your e-mail address", "session_id": session_id})


@auth_router.post("/auth/verify-otp", response_model=OTPVerifyResponse, summary="Log in with the code")
async def verify_otp(body: OTPVerifyRequest, request: Request, runtime: Run) -> Response:
    """Exchange the code for tokens; a code works once. A wrong or expired one is a 400."""
    await limit_verification(runtime, client_of(request).address)
    return session_answer(await logins.verify(runtime, body.session_id, body.otp_code, client_of(request)))


@auth_router.post("/auth/refresh", summary="Get a new access token")
async def refresh(body: RefreshRequest, runtime: Run) -> RefreshResponse:
    """The refresh token stays the same until it expires or is revoked."""
    token, expires_in = await sessions.refresh(runtime, body.refresh_token)
    return RefreshResponse(access_token=token, token_type="bearer", expires_in=expires_in)  # noqa: S106 - no password


@auth_router.post("/auth/logout", status_code=204, summary="End a session")
async def logout(body: RefreshRequest, runtime: Run) -> None:
    """Revoke the refresh token, and with it the access tokens of its session. Unknown tokens are no error."""
    await sessions.end(runtime, body.refresh_token)


@auth_router.get("/auth/me", response_model=AuthUserResponse, summary="Who am I", openapi_extra={"security": SECURITY})
async def me(request: Request, runtime: Run) -> Response:
    """The user that the credential acts for; works with every valid credential."""
    identified = await identify(runtime, credentials(request))
    request.scope["sinas_caller"] = identified.caller
    return JsonAnswer(user_fields(identified))


@auth_router.post("/auth/check-permissions", response_model=PermissionCheckResponse, summary="Check permissions")
async def check_permissions(body: PermissionCheckRequest, caller: CurrentCaller) -> Response:
    """Whether the caller holds these permissions, by the rules every route of this server uses."""
    keys = [check_key(key, ("body", "permissions", index)) for index, key in enumerate(body.permissions)]
    held = [caller.has(key) for key in keys]
    return JsonAnswer(
        {
            "result": all(held) if body.logic == "AND" else any(held),
            "logic": body.logic,
            "checks": [{"permission": key, "has_permission": has} for key, has in zip(keys, held, strict=True)],
        }
    )


@auth_router.get("/info", summary="What this server is")
async def info(runtime: Run) -> InfoResponse:
    """Needs no credential."""
    settings = runtime.settings
    try:
        runs_code = any(process.queue == "functions" for process in await read_heartbeats(runtime))
    except UnavailableError:
        runs_code = False
    features = {"code_execution": runs_code, "oidc": settings.oidc_issuer is not None}
    return InfoResponse(auth_mode=settings.auth_mode, version=version("sinas-server"), features=features)

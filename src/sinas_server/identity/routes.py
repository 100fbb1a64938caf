"""The runtime routes of identity: login and sessions, who I am, what I may do, and what this server is."""

from datetime import datetime
from importlib.metadata import version
from typing import Literal
from uuid import UUID

from fastapi import Request, Response
from pydantic import BaseModel, EmailStr, Field, JsonValue

from sinas_server.identity import login as logins
from sinas_server.identity.limits import limit_login, limit_verification
from sinas_server.identity.resolve import Identified, identify
from sinas_server.kernel.access import check_key
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, credentials, new_router

auth_router = new_router("", "auth")
MAX_CHECKS = 1000


class LoginRequest(BaseModel):
    """Who wants to log in."""

    email: EmailStr = Field(max_length=320, description="Where the login code is sent.")


class LoginResponse(BaseModel):
    """The same for every address, known or not."""

    message: str = Field(description="What happens next, for people.")
    session_id: UUID = Field(description="Goes into `/auth/verify-otp` together with the code.")


class OTPVerifyRequest(BaseModel):
    """The code from the mail."""

    session_id: UUID = Field(description="From `/auth/login`.")
    otp_code: str = Field(max_length=64, description="The six digits.")


class AuthUserResponse(BaseModel):
    """The user that a credential acts for."""

    id: UUID = Field(description="The user's id.")
    email: str = Field(description="The e-mail address, in lower case.")
    is_active: bool = Field(description="Always true here: others cannot log in.")
    roles: list[str] = Field(description="The names of the user's roles.")
    external_auth_provider: str | None = Field(description="Who vouches for the user, if not this server.")
    external_auth_id: str | None = Field(description="The user's id there.")
    custom_fields: dict[str, JsonValue] = Field(description="The profile's free fields.")
    created_at: datetime = Field(description="When the user was created.")
    last_login_at: datetime | None = Field(description="When the user last logged in with a code.")


class OTPVerifyResponse(BaseModel):
    """A session."""

    access_token: str = Field(description="For `Authorization: Bearer`.")
    refresh_token: str = Field(description="Gets new access tokens from `/auth/refresh`; it stays the same.")
    token_type: Literal["bearer"] = Field(description="How to send the access token.")
    expires_in: int = Field(description="Life of the access token, in seconds.")
    user: AuthUserResponse = Field(description="Who has logged in.")


class RefreshRequest(BaseModel):
    """A session's refresh token."""

    refresh_token: str = Field(max_length=1024, description="From `/auth/verify-otp`.")


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

    auth_mode: Literal["otp"] = Field(description="How people log in.")
    version: str = Field(description="The server's version.")
    features: dict[str, bool] = Field(description="What is switched on.")


def _client(request: Request) -> logins.Client:
    address = request.client.host if request.client else None
    return logins.Client(address, request.headers.get("user-agent", "")[:512] or None)


def _user(identified: Identified) -> dict[str, JsonValue | UUID | datetime]:
    profile = identified.profile
    return {
        "id": profile.id,
        "email": profile.email,
        "is_active": profile.is_active,
        "roles": list(identified.caller.roles),
        "external_auth_provider": profile.external_auth_provider,
        "external_auth_id": profile.external_auth_id,
        "custom_fields": profile.custom_fields,
        "created_at": profile.created_at,
        "last_login_at": profile.last_login_at,
    }


@auth_router.post("/auth/login", summary="Ask for a login code")
async def login(body: LoginRequest, request: Request, runtime: Run) -> LoginResponse:
    """Send six digits to the address. The answer does not tell whether the address is known."""
    email = body.email.lower()
    await limit_login(runtime, _client(request).address, email)
    session_id = await logins.start(runtime, email)
    return LoginResponse(message="A login code has been sent to your e-mail address", session_id=session_id)


@auth_router.post("/auth/verify-otp", response_model=OTPVerifyResponse, summary="Log in with the code")
async def verify_otp(body: OTPVerifyRequest, request: Request, runtime: Run) -> Response:
    """Exchange the code for tokens; a code works once. A wrong or expired one is a 400."""
    await limit_verification(runtime, _client(request).address)
    session = await logins.verify(runtime, body.session_id, body.otp_code, _client(request))
    return JsonAnswer(
        {
            "access_token": session.access_token,
            "refresh_token": session.refresh_token,
            "token_type": "bearer",
            "expires_in": session.expires_in,
            "user": _user(session.identified),
        }
    )


@auth_router.post("/auth/refresh", summary="Get a new access token")
async def refresh(body: RefreshRequest, runtime: Run) -> RefreshResponse:
    """The refresh token stays the same until it expires or is revoked."""
    token, expires_in = await logins.refresh(runtime, body.refresh_token)
    return RefreshResponse(access_token=token, token_type="bearer", expires_in=expires_in)  # noqa: S106 - no password


@auth_router.post("/auth/logout", status_code=204, summary="End a session")
async def logout(body: RefreshRequest, runtime: Run) -> None:
    """Revoke the refresh token, and with it the access tokens of its session. Unknown tokens are no error."""
    await logins.end(runtime, body.refresh_token)


@auth_router.get("/auth/me", response_model=AuthUserResponse, summary="Who am I")
async def me(request: Request, runtime: Run) -> Response:
    """The user that the credential acts for; works with every valid credential."""
    identified = await identify(runtime, credentials(request))
    request.scope["sinas_caller"] = identified.caller
    return JsonAnswer(_user(identified))


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
async def info() -> InfoResponse:
    """Needs no credential."""
    return InfoResponse(auth_mode="otp", version=version("sinas-server"), features={"code_execution": False})

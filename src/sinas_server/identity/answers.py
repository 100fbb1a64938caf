"""What the routes of login share: who someone is and a session, as clients get them."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, Field, JsonValue

from sinas_server.identity.resolve import Identified
from sinas_server.identity.sessions import Client, Session
from sinas_server.kernel.http import JsonAnswer


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
    last_login_at: datetime | None = Field(description="When the user last logged in.")


class LoginResponse(BaseModel):
    """The same for every address, known or not."""

    message: str = Field(description="What happens next, for people.")
    session_id: UUID = Field(description="Goes into the next request, together with the code.")


class OTPVerifyResponse(BaseModel):
    """A session."""

    access_token: str = Field(description="For `Authorization: Bearer`.")
    refresh_token: str = Field(description="Gets new access tokens from `/auth/refresh`; it stays the same.")
    token_type: Literal["bearer"] = Field(description="How to send the access token.")
    expires_in: int = Field(description="Life of the access token, in seconds.")
    user: AuthUserResponse = Field(description="Who has logged in.")


def client_of(request: Request) -> Client:
    """Where a request comes from."""
    address = request.client.host if request.client else None
    return Client(address, request.headers.get("user-agent", "")[:512] or None)


def user_fields(identified: Identified) -> dict[str, JsonValue | UUID | datetime]:
    """The fields of `AuthUserResponse`."""
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


def session_answer(session: Session) -> JsonAnswer:
    """An `OTPVerifyResponse`."""
    return JsonAnswer(
        {
            "access_token": session.access_token,
            "refresh_token": session.refresh_token,
            "token_type": "bearer",
            "expires_in": session.expires_in,
            "user": user_fields(session.identified),
        }
    )

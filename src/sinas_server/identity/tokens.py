"""The forms of credentials: API keys, refresh tokens, login codes, and signed access tokens (JWT, RFC 7519)."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import jwt

from sinas_server.kit.clock import now

KEY_START = "sk-sinas-"
"""Every API key begins like this, so that it can be told from a JWT and found by secret scanners."""
SHOWN = len(KEY_START) + 6
ALGORITHM = "HS256"


@dataclass(frozen=True)
class SessionToken:
    """What the access token of a logged-in user says."""

    user_id: UUID
    session_id: UUID


@dataclass(frozen=True)
class ExecutionToken:
    """What the access token inside a function says."""

    execution_id: UUID
    token_id: UUID


def new_api_key() -> tuple[str, str]:
    """A fresh API key with 256 random bits, and the prefix that lists may show."""
    key = KEY_START + secrets.token_urlsafe(32)
    return key, key[:SHOWN]


def new_refresh_token() -> str:
    """A fresh refresh token with 256 random bits."""
    return secrets.token_urlsafe(32)


def new_login_code() -> str:
    """Six random digits."""
    return f"{secrets.randbelow(10**6):06d}"


def mint_session_token(signing_key: str, token: SessionToken, minutes: int) -> str:
    """An access token for a logged-in user, valid for `minutes`."""
    at = now()
    claims = {
        "sub": str(token.user_id),
        "sid": str(token.session_id),
        "type": "access",
        "iat": at,
        "exp": at + timedelta(minutes=minutes),
    }
    return jwt.encode(claims, signing_key, algorithm=ALGORITHM)


def mint_execution_token(signing_key: str, token: ExecutionToken, expires_at: datetime) -> str:
    """An access token for the code of one attempt of an execution."""
    claims = {
        "exe": str(token.execution_id),
        "jti": str(token.token_id),
        "type": "execution",
        "iat": now(),
        "exp": expires_at.astimezone(UTC),
    }
    return jwt.encode(claims, signing_key, algorithm=ALGORITHM)


def read_token(signing_key: str, token: str) -> SessionToken | ExecutionToken | None:
    """What an access token says; None if it is not ours, malformed or expired."""
    try:
        claims = jwt.decode(token, signing_key, algorithms=[ALGORITHM], options={"require": ["exp", "iat"]})
        match claims.get("type"):
            case "access":
                return SessionToken(UUID(claims["sub"]), UUID(claims["sid"]))
            case "execution":
                return ExecutionToken(UUID(claims["exe"]), UUID(claims["jti"]))
            case _:
                return None
    except (jwt.InvalidTokenError, KeyError, ValueError, AttributeError, TypeError):
        return None

"""Reading values that come as text: lists, JSON and URLs. Each raises ValueError with the reason for a wrong one."""

import json
from urllib.parse import urlsplit


def split_commas(value: object) -> object:
    """`a, b` as a tuple of its parts; what is no text stays as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def json_object(value: object) -> object:
    """The JSON in a text; what is no text stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('not JSON; expected an object like {"staff": "Users"}') from None


def http_url(value: str) -> str:
    """A URL without a trailing slash; `http` where no scheme is given."""
    return (value if "://" in value else f"http://{value}").rstrip("/")


def issuer_url(value: str) -> str:
    """The identifier of an OpenID Connect provider (Discovery 1.0, section 3), unchanged."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be an http or https URL without a query, exactly as the provider calls itself")
    return value


def storable(text: str) -> str:
    """Text that PostgreSQL can hold: no NUL, no lone surrogates."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()

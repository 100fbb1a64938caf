"""What the values of settings must be like."""

import base64
import binascii
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from sinas_server.kit.hosts import parse_rule
from sinas_server.kit.texts import split_commas


def check_fernet_keys(value: SecretStr) -> SecretStr:
    """Keys as Fernet makes them, by commas. Raises `ValueError`."""
    for key in value.get_secret_value().split(","):
        try:
            raw = base64.urlsafe_b64decode(key.strip())
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 32:
            raise ValueError("each key must be 32 bytes in URL-safe base64, as Fernet.generate_key() gives")
    return value


def check_signing_secrets(value: SecretStr) -> SecretStr:
    """Secrets as Standard Webhooks writes them, by commas. Raises `ValueError`."""
    for secret in value.get_secret_value().split(","):
        mark, _, encoded = secret.strip().partition("_")
        try:
            key = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if mark != "whsec" or not 24 <= len(key) <= 64:
            raise ValueError("each secret must be whsec_ and 24 to 64 bytes in base64")
    return value


def check_postgres_url(value: SecretStr) -> SecretStr:
    """The address of a PostgreSQL. Raises `ValueError`."""
    from sqlalchemy.engine import make_url  # lazy: commands that only talk to a server need no SQLAlchemy
    from sqlalchemy.exc import ArgumentError  # lazy: the same

    try:
        url = make_url(value.get_secret_value())
    except ArgumentError:
        raise ValueError("not a URL; expected postgresql://user:password@host:port/name") from None
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ValueError("must start with postgresql://; PostgreSQL is the only database Sinas runs on")
    return value


def check_redis_url(value: SecretStr) -> SecretStr:
    """The address of a Redis. Raises `ValueError`."""
    if urlsplit(value.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must start with redis://, rediss:// or unix://")
    return value


def check_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    """Hosts that may be reached, or `*`. Raises `ValueError`."""
    for entry in value:
        if entry != "*":
            parse_rule(entry)
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
Hosts = Annotated[Names, AfterValidator(check_hosts)]


SIZES = {"": 0, "k": 10, "m": 20, "g": 30}


def parse_size(value: object) -> object:
    """`512m` or `1g`, as Docker writes sizes, in bytes. Raises `ValueError`."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().removesuffix("b")
    number, unit = (text[:-1], text[-1:]) if text[-1:] in {"k", "m", "g"} else (text, "")
    if not number.isdigit():
        raise ValueError("must be a size such as 512m or 1g")
    return int(number) << SIZES[unit]


Size = Annotated[int, BeforeValidator(parse_size)]
"""A number of bytes."""

"""Telling other servers what happened: signed HTTP requests to addresses that the operator has listed.

Messages are signed as Standard Webhooks 1.0.0 says (https://github.com/standard-webhooks/standard-webhooks).
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from sinas_server.backends.net import (
    METADATA_NAMES,
    Refusal,
    embedded_ipv4,
    literal,
    refuse_metadata,
    refuse_private,
)
from sinas_server.backends.transport import GuardedTransport
from sinas_server.kit.hosts import Address, Rule, parse_rule

SECONDS = 15.0
"""Longest wait for an answer, the connection included."""
MAX_URL = 2048
ANYONE = "*"
GONE = 410
PORTS = {"http": 80, "https": 443}
SECRET_MARK = "whsec_"  # noqa: S105 - how the standard marks a secret


class DeliveryError(Exception):
    """The message did not arrive; the text says why."""


class RefusedDeliveryError(DeliveryError):
    """The message may not be sent, or the receiver wants no more of them: trying again is no use."""


@dataclass(frozen=True)
class Message:
    """What is sent. The id is the same at each attempt, so that a receiver notices a repetition."""

    id: str
    body: bytes


class Receivers:
    """Which addresses messages may be sent to."""

    def __init__(self, allowed: Sequence[str]) -> None:
        """`allowed`: entries like those of SINAS_ALLOWED_HOSTS, or `*` for every public address."""
        self._anyone = ANYONE in allowed
        self._rules: tuple[Rule, ...] = tuple(parse_rule(entry) for entry in allowed if entry != ANYONE)

    def problem(self, url: str) -> str | None:
        """Why nothing may be sent to this URL, as far as one can tell without looking its name up; None if it may."""
        if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
            return f"must have at most {MAX_URL} characters, all of ASCII, and no blanks"
        try:
            host, port = _place(url)
        except ValueError as error:
            return f"is no URL that can be called: {error}"
        if host in METADATA_NAMES:
            return f"must not lead to {host}: it is a cloud metadata address"
        address = literal(host)
        if address is not None:
            reason = self.refusal(host, port)(address)
            return None if reason is None else f"must not lead to {host}, port {port}: {reason}"
        if not self._anyone and not self._named(host, port):
            return f"must not lead to {host}, port {port}: CALLBACK_ALLOWED_HOSTS does not list it"
        return None

    def _named(self, host: str, port: int) -> bool:
        return any(rule.names(host, port) for rule in self._rules)

    def refusal(self, host: str, port: int) -> Refusal:
        """Says of each address that `host` turns out to have whether it may be reached."""
        named = self._named(host, port)

        def refuse(address: Address) -> str | None:
            reason = refuse_metadata(address)
            real = embedded_ipv4(address)
            if reason is not None or named or any(rule.holds(real, port) for rule in self._rules):
                return reason
            if not self._anyone:
                return "CALLBACK_ALLOWED_HOSTS does not list it"
            private = refuse_private(real)
            return None if private is None else f"it is {private}"

        return refuse


def _place(url: str) -> tuple[str, int]:
    """The host and port of a URL. Raises `ValueError` for what is no plain http or https URL."""
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError("it must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it must not hold a user name or password")
    return parts.hostname.rstrip(".").lower(), parts.port or PORTS[parts.scheme]


def secret_bytes(secret: str) -> bytes:
    """The key behind `whsec_<base64>`. Raises `ValueError`."""
    if not secret.startswith(SECRET_MARK):
        raise ValueError(f"a secret begins with {SECRET_MARK}")
    key = base64.b64decode(secret.removeprefix(SECRET_MARK), validate=True)
    if not 24 <= len(key) <= 64:
        raise ValueError("a secret has 24 to 64 bytes, in base64")
    return key


def signed_headers(secrets: Sequence[str], message: Message, at: int) -> dict[str, str]:
    """The three headers; each secret signs, so that receivers can change theirs one after the other."""
    content = b".".join((message.id.encode(), str(at).encode(), message.body))
    signatures = (hmac.digest(secret_bytes(secret), content, hashlib.sha256) for secret in secrets)
    return {
        "webhook-id": message.id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(signature).decode()}" for signature in signatures),
    }


async def deliver(receivers: Receivers, secrets: Sequence[str], url: str, message: Message) -> None:
    """Post a message to a URL: connects to the very address that was checked, and follows no redirect.

    Raises `DeliveryError` unless the answer is a 2xx, and `RefusedDeliveryError` where trying again is no use.
    """
    problem = receivers.problem(url)
    if problem is not None:
        raise RefusedDeliveryError(f"the address {problem}")
    headers = signed_headers(secrets, message, int(time.time())) | {"content-type": "application/json"}
    transport = GuardedTransport(receivers.refusal(*_place(url)), max_connections=1)
    try:
        async with (
            httpx2.AsyncClient(transport=transport, timeout=SECONDS, trust_env=False) as client,
            client.stream("POST", url, content=message.body, headers=headers) as answer,
        ):
            status = answer.status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        raise DeliveryError(f"{type(error).__name__}: {error}") from error
    if status == GONE:
        raise RefusedDeliveryError("the receiver answered 410: it is gone")
    if not 200 <= status < 300:
        raise DeliveryError(f"the receiver answered {status}; only a 2xx counts, and redirects are not followed")

"""What went wrong at a provider, as `ProviderError`: its own words, never its key, and whether to try again."""

import json
import re
from collections.abc import Mapping, Sequence

from sinas_server.backends.llm import ProviderConfig, ProviderError
from sinas_server.backends.llm.options import ProviderOptions
from sinas_server.backends.net import ForbiddenAddressError

MAX_WORDS = 1000
"""Most characters of a provider's message that are passed on."""
RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})


def secrets_of(config: ProviderConfig, options: ProviderOptions) -> tuple[str, ...]:
    """What must not appear in a message: the key, and header values long enough to be one."""
    values = [config.api_key or "", *(value for value in options.headers.values() if len(value) > 7)]
    return tuple(filter(None, values))


def words(body: object) -> str:
    """The human part of an error body, whatever its shape."""
    if isinstance(body, bytes):
        body = body.decode(errors="replace")
    if isinstance(body, str):
        try:
            parsed = json.loads(body)
        except ValueError:
            return body.strip()
        return words(parsed) if isinstance(parsed, (dict, list)) else body.strip()
    if isinstance(body, list):
        return "; ".join(filter(None, map(words, body)))
    if isinstance(body, dict):
        told = next((body[key] for key in ("error", "message", "detail", "msg") if body.get(key)), None)
        return json.dumps(body, default=str) if told is None else words(told)
    return "" if body is None else str(body)


def chain(error: BaseException) -> list[BaseException]:
    """An error and everything under it, the first cause last."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        found.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found


def redacted(text: str, secrets: Sequence[str]) -> str:
    """The text without the secrets, and not too long."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text[:MAX_WORDS]


def answered(provider: str, status: int, body: object, secrets: Sequence[str]) -> ProviderError:
    """The error for an answer that is not a success."""
    text = f"{provider} answered {status}: {words(body) or 'no reason given'}"
    return ProviderError(
        redacted(text, secrets), status=status, retryable=status in RETRYABLE_STATUSES or status >= 500
    )


def retry_after(error: BaseException) -> float | None:
    """The seconds of a `Retry-After` header on the answer that an error tells of; dates are not read."""
    for cause in chain(error):
        headers = getattr(getattr(cause, "response", cause), "headers", None)  # Mistral's client has them on the error
        seconds = retry_after_of(headers) if isinstance(headers, Mapping) else None
        if seconds is not None:
            return seconds
    return None


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """The seconds of a `Retry-After` header; dates are not read."""
    value = headers.get("retry-after")
    return float(value) if value is not None and re.fullmatch(r"\d{1,6}(\.\d{1,3})?", value) else None


def unreachable(provider: str, error: BaseException, secrets: Sequence[str]) -> ProviderError:
    """The error for a connection that failed, broke or was refused by our own transport."""
    causes = chain(error)
    for cause in causes:
        if isinstance(cause, ForbiddenAddressError):
            return ProviderError(redacted(f"the provider's endpoint cannot be used: {cause}", secrets))
    # Libraries wrap the reason in words like `Connection error.`
    reason = next((str(cause) for cause in reversed(causes) if str(cause)), type(causes[-1]).__name__)
    text = f"{provider} cannot be reached or stopped answering: {reason}"
    return ProviderError(redacted(text, secrets), retryable=True)

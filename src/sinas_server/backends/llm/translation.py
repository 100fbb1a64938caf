"""pydantic-ai's errors as `ProviderError`."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx2
import pydantic_ai.exceptions as ai

from sinas_server.backends.llm import ProviderError
from sinas_server.backends.llm.failures import answered, redacted, retry_after, unreachable, words
from sinas_server.backends.net import ForbiddenAddressError

CONTENT_ERRORS: tuple[type[Exception], ...] = (ai.UserError, NotImplementedError, AssertionError, ValueError)
"""What the adapters raise for a request that a provider cannot take."""
DECODING_ERRORS = (UnicodeDecodeError, json.JSONDecodeError)
"""What they raise for an answer that is not UTF-8, or not JSON."""
TRANSPORT_ERRORS: tuple[type[Exception], ...] = (ai.ModelConnectionError, httpx2.HTTPError, ForbiddenAddressError)


def translated(provider: str, error: Exception, secrets: Sequence[str]) -> ProviderError:
    """The one error the rest of the system sees."""
    if isinstance(error, TRANSPORT_ERRORS):
        return unreachable(provider, error, secrets)
    if isinstance(error, ai.ModelHTTPError):
        found = answered(provider, error.status_code, error.body, secrets)
        found.retry_after_seconds = retry_after(error)
        if isinstance(error, ai.ModelQuotaExceededError):
            found.retryable = False  # reported as 429, but waiting does not fill an empty account
        return found
    if isinstance(error, DECODING_ERRORS):  # they are `ValueError`s too, but about what came, not what was sent
        return ProviderError(f"{provider} ended its answer in the middle, or wrote nonsense", retryable=True)
    if isinstance(error, CONTENT_ERRORS):
        return ProviderError(redacted(f"the request cannot be sent to {provider}: {error}", secrets))
    # An error inside a stream without a status, or an answer that makes no sense: another try may go well.
    text = words(getattr(error, "body", None)) or str(error)
    permanent = isinstance(error, (ai.ModelQuotaExceededError, ai.ModelRequestRejectedError))
    return ProviderError(redacted(f"{provider} failed: {text}", secrets), retryable=not permanent)


@contextmanager
def provider_errors(provider: str, secrets: Sequence[str]) -> Iterator[None]:
    """Turn what pydantic-ai raises inside the block into `ProviderError`."""
    expected: tuple[type[Exception], ...] = (ai.AgentRunError,)
    try:
        yield
    except expected + TRANSPORT_ERRORS + CONTENT_ERRORS as error:
        raise translated(provider, error, secrets) from None

"""The models that a provider offers, asked over plain HTTP: no provider's library is needed for that."""

from collections.abc import Sequence

import httpx2
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from sinas_server.backends.llm import ProviderConfig, ProviderError
from sinas_server.backends.llm.failures import answered, unreachable
from sinas_server.backends.net import ForbiddenAddressError

ANTHROPIC_VERSION = "2026-10-21"
"""The version of the messages API that the library we use speaks."""


class _Entry(BaseModel):
    id: str | None = None
    name: str | None = None


class _Listing(BaseModel):
    entries: list[_Entry] = Field(validation_alias=AliasChoices("data", "models"))


def _address(config: ProviderConfig, endpoint: str) -> str:
    if config.type == "ollama":
        return endpoint.removesuffix("/v1") + "/api/tags"
    if config.type == "anthropic":
        return f"{endpoint}/v1/models?limit=1000"
    return f"{endpoint}/models" if config.type == "openai" else f"{endpoint}/v1/models"


def _headers(config: ProviderConfig) -> dict[str, str]:
    headers = {"authorization": f"Bearer {config.api_key}"} if config.api_key else {}
    return {**headers, "anthropic-version": ANTHROPIC_VERSION} if config.type == "anthropic" else headers


async def list_models(
    http: httpx2.AsyncClient, config: ProviderConfig, endpoint: str, secrets: Sequence[str]
) -> list[str]:
    """The names, sorted. Raises `ProviderError`."""
    try:
        response = await http.get(_address(config, endpoint), headers=_headers(config) | dict(http.headers))
    except (httpx2.HTTPError, ForbiddenAddressError) as error:
        raise unreachable(config.type, error, secrets) from None
    if not response.is_success:
        raise answered(config.type, response.status_code, response.content, secrets)
    try:
        listing = _Listing.model_validate_json(response.content)
    except ValidationError:
        raise ProviderError(f"{config.type} did not answer with a list of models", retryable=True) from None
    names = (entry.id or entry.name for entry in listing.entries)
    return sorted({name for name in names if name})

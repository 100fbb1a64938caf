"""What an administrator may set about a provider besides its key: checked, with defaults and a normal endpoint."""

from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sinas_server.backends.llm import ProviderConfig, ProviderError
from sinas_server.backends.net import ForbiddenAddressError, check_endpoint

OFFICIAL = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "mistral": "https://api.mistral.ai",
}


class ProviderOptions(BaseModel):
    """The `config` of a provider that is reached over the network; keys it does not know are kept but not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of an answer, if the agent sets none.")
    organization_id: str | None = Field(default=None, description="Sent to OpenAI with every request.")
    headers: dict[str, str] = Field(default_factory=dict, description="HTTP headers added to every request.")
    timeout: float = Field(default=300, gt=0, le=3600, description="Seconds of silence after which a request fails.")
    thinking: bool | Literal["minimal", "low", "medium", "high"] | None = Field(
        default=None, description="How much the model reasons before it answers, where it can; its own choice if unset."
    )
    api: Literal["chat", "responses"] = Field(
        default="chat",
        description="Which of OpenAI's APIs agents speak: chat completions, which all compatible servers have, or "
        "responses, which give back the reasoning of OpenAI's own models in the next request.",
    )
    prompt_caching: bool | None = Field(
        default=None,
        description="Whether the provider is asked to keep what a chat's requests have in common. If unset, those are "
        "that are known to take it: whoever speaks Anthropic's format, and OpenAI and Mistral themselves.",
    )


def describe(error: ValidationError) -> str:
    """A validation error on one line: where, and what is wrong."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_url=False)
    )


def read_options(config: ProviderConfig) -> ProviderOptions:
    """The checked options. Raises `ProviderError` naming each bad field."""
    try:
        return ProviderOptions.model_validate(dict(config.options))
    except ValidationError as error:
        raise ProviderError(f"the provider's config is not valid: {describe(error)}") from error


def keeps_prompts(config: ProviderConfig, endpoint: str, options: ProviderOptions) -> bool:
    """Whether requests ask for prompt caching."""
    if options.prompt_caching is not None:
        return options.prompt_caching
    return config.type == "anthropic" or endpoint == OFFICIAL.get(config.type)


def endpoint_of(config: ProviderConfig) -> str:
    """Where requests go, without a slash at the end.

    The clients of OpenAI and Ollama want a path that ends in `/v1`, the others add it themselves; either way of
    writing it is accepted. Raises `ProviderError` for a missing, malformed or forbidden endpoint.
    """
    if not config.endpoint:
        official = OFFICIAL.get(config.type)
        if official is None:
            raise ProviderError(f"a provider of type {config.type} needs an endpoint, e.g. http://localhost:11434")
        return official
    try:
        check_endpoint(config.endpoint)
    except (ForbiddenAddressError, ValueError) as error:
        raise ProviderError(f"the provider's endpoint cannot be used: {error}") from error
    parts = urlsplit(config.endpoint)
    path = parts.path.rstrip("/")
    if config.type == "ollama":
        path = path.removesuffix("/api").removesuffix("/v1") + "/v1"
    elif config.type == "openai":
        path = path or "/v1"
    else:
        path = path.removesuffix("/v1")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

"""The LLM provider kind: how a model service is reached. Its key is encrypted and never shown."""

from typing import Literal

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator

from sinas_server.backends.llm.scripted import MODEL_NAME, ScriptedRules
from sinas_server.backends.net import ForbiddenAddressError, check_endpoint
from sinas_server.kernel.default import replace_default
from sinas_server.kernel.kind import Kind, Spec
from sinas_server.kernel.outbox import audit_change
from sinas_server.kernel.secret import Secret, is_stored
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db
from sinas_server.providers.prices import check_prices

ANY_NAME = r"^[^/\s\x00-\x1f](?:[^/\x00-\x1f]*[^/\s\x00-\x1f])?$"
"""Names that may be anything without a slash, a control character, or spaces around it."""
ProviderType = Literal["openai", "anthropic", "mistral", "ollama", "scripted"]


class ProviderSpec(Spec):
    """How to reach a model service."""

    provider_type: ProviderType = Field(
        description="The service's wire format. `scripted` is an offline model that follows rules, for demos and tests."
    )
    api_key: Secret | None = Field(default=None, description="Its API key; encrypted, never returned.")
    api_endpoint: str | None = Field(
        default=None,
        max_length=2048,
        pattern=r"^https?://[^\s]+$",
        validate_default=True,
        description="Address of the API, where it is not the service's own; required for Ollama.",
    )
    default_model: str | None = Field(
        default=None, max_length=255, description="The model used where an agent names none."
    )
    models: list[str] = Field(
        default=[],
        description="Models it offers; the first is the default's stand-in. The OpenAI adapter is closed to others.",
    )
    config: dict[str, JsonValue] = Field(
        default={},
        description="More settings: `max_tokens`, `organization_id`, `timeout`, `prices`, `api` (`responses`: OpenAI's "
        "API whose models go on with their reasoning), `thinking` (how much models reason), `prompt_caching` (whether "
        "it is asked to keep what a chat's requests have in common; unset: if it is known to take that), "
        "`context_window` (tokens a model reads at most; longer conversations lose their oldest exchanges); the rules "
        "of `scripted`.",
    )
    is_default: bool = Field(default=False, description="Whether agents without a provider of their own use it.")

    @field_validator("api_endpoint")
    @classmethod
    def _ollama_has_an_endpoint(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("provider_type") == "ollama" and not value:
            raise ValueError("is required for ollama")
        return value

    @field_validator("api_endpoint")
    @classmethod
    def _may_be_reached(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not is_stored(info):  # what is stored must be read, and is refused when it is asked
            try:
                check_endpoint(value)
            except ForbiddenAddressError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("config")
    @classmethod
    def _rules_are_valid(cls, value: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        if info.data.get("provider_type") == "scripted":
            try:
                ScriptedRules.model_validate(value)
            except ValidationError as error:
                problems = error.errors(include_url=False)
                raise ValueError("; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems)) from error
        else:
            check_prices(value)
            window = value.get("context_window", 1)
            if not isinstance(window, int) or isinstance(window, bool) or window < 1:
                raise ValueError("context_window: must be a number of tokens, at least 1")
        return value

    @property
    def model(self) -> str | None:
        """The model used where nobody names one."""
        return self.default_model or (self.models[0] if self.models else None)

    @property
    def offered(self) -> list[str]:
        """The models it is known to offer, the default first."""
        named = [name for name in (self.default_model, *self.models) if name]
        return list(dict.fromkeys(named)) or ([MODEL_NAME] if self.provider_type == "scripted" else [])


async def _one_default(db: Db, old: Resource[ProviderSpec] | None, new: Resource[ProviderSpec] | None) -> None:
    if new is not None and new.spec.is_default and not (old is not None and old.spec.is_default):
        await replace_default(db, PROVIDER, new)


async def _on_change(db: Db, old: Resource[ProviderSpec] | None, new: Resource[ProviderSpec] | None) -> None:
    await audit_change(db, old, new)
    await _one_default(db, old, new)


PROVIDER = Kind(
    name="llm_provider",
    plural="llm_providers",
    title="LLM provider",
    spec=ProviderSpec,
    namespaced=False,
    name_pattern=ANY_NAME,
    yaml="llmProviders",
    yaml_renames={"provider_type": "type", "api_endpoint": "endpoint"},
    on_change=_on_change,
    description="Connections to language-model services.",
    admin_only=True,
    packaged=False,
)

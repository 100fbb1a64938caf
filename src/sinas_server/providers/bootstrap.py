"""The provider an embedded Sinas starts with: found keys, a local Ollama, or else the offline model."""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from pydantic import JsonValue, SecretStr

from sinas_server.backends.llm import ProviderConfig, ProviderError
from sinas_server.backends.llm.remote import RemoteModel
from sinas_server.backends.llm.scripted import LABEL
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import EVERYTHING, Change
from sinas_server.kernel.unit import Db
from sinas_server.providers.kind import PROVIDER
from sinas_server.providers.resolve import default_provider
from sinas_server.settings import Settings

log = structlog.get_logger()
OFFLINE_NAME = "offline"
OFFLINE_RULES: dict[str, JsonValue] = {
    "rules": [],
    "default": f"I am the {LABEL}: no language model is configured yet. An administrator can add one with "
    "POST /api/v1/llm-providers, or set OPENAI_API_KEY, ANTHROPIC_API_KEY or MISTRAL_API_KEY and restart.",
}


@dataclass(frozen=True)
class Found:
    """A provider that the environment offers."""

    name: str
    fields: Mapping[str, JsonValue]


def _keys(settings: Settings) -> list[Found]:
    offers: list[tuple[str, SecretStr | None, str]] = [
        ("openai", settings.openai_api_key, "gpt-4o"),
        ("anthropic", settings.anthropic_api_key, "claude-sonnet-4-5"),
        ("mistral", settings.mistral_api_key, "mistral-large-latest"),
    ]
    return [
        Found(name, {"provider_type": name, "api_key": key.get_secret_value(), "default_model": model})
        for name, key, model in offers
        if key is not None
    ]


async def _ollama(settings: Settings) -> Found | None:
    endpoint = settings.ollama_host or "http://127.0.0.1:11434"
    model = RemoteModel(ProviderConfig("ollama", endpoint=endpoint, options={"timeout": 2}))
    try:
        names = await model.list_models()
    except ProviderError:
        return None
    finally:
        await model.close()
    if not names:
        return None
    return Found("ollama", {"provider_type": "ollama", "api_endpoint": endpoint, "default_model": names[0]})


async def found_providers(settings: Settings) -> list[Found]:
    """What the environment offers, the one to use by default first."""
    offers = _keys(settings)
    local = await _ollama(settings)
    return [*offers, local] if local else offers


async def bootstrap(runtime: Runtime, admin: Caller) -> None:
    """Embedded: make what the environment offers available; replaces only the offline model as the default."""
    offers = await found_providers(runtime.settings)
    async with runtime.database.unit() as db:
        existing = {provider.name for provider in await store.find(db, admin, PROVIDER, EVERYTHING)}
        current = await default_provider(db)
        replaceable = current is None or current.name == OFFLINE_NAME
        for offer in offers:
            if offer.name not in existing:
                await _create(db, admin, offer, is_default=replaceable)
                replaceable = False
        if not existing and not offers:
            await _create(db, admin, Found(OFFLINE_NAME, {"provider_type": "scripted", "config": OFFLINE_RULES}), True)


async def _create(db: Db, admin: Caller, offer: Found, is_default: bool) -> None:
    spec = store.validated(PROVIDER, {**offer.fields, "is_default": is_default})
    await store.create(db, admin, PROVIDER, ("", offer.name), spec, Change())
    log.info("LLM provider created", name=offer.name, type=spec.provider_type, is_default=is_default)

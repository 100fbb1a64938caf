"""Which provider and model answer for an agent, and asking them."""

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Uuid, bindparam, literal_column, select

from sinas_server.backends.llm import ProviderConfig
from sinas_server.kernel import lookup, store
from sinas_server.kernel.errors import ConflictError
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Database, Db
from sinas_server.providers.kind import PROVIDER, ProviderSpec


class NoProviderError(ConflictError):
    """No provider can answer; the message says what to configure."""

    code = "no_provider"


@dataclass(frozen=True)
class Resolved:
    """The provider and model to ask."""

    provider_id: UUID
    name: str
    config: ProviderConfig
    model: str

    @property
    def context_window(self) -> int | None:
        """How many tokens the model reads at most, if its provider's `config` tells."""
        window = self.config.options.get("context_window")
        return window if isinstance(window, int) else None

    @property
    def is_scripted(self) -> bool:
        """Whether this is the offline model, which user interfaces label as such."""
        return self.config.type == "scripted"


_KEPT = (ResourceRow.kind == PROVIDER.name, ResourceRow.deleted_at.is_(None))
_USABLE = (*_KEPT, ResourceRow.is_active)
_BEST = (ResourceRow.spec["is_default"].as_boolean().desc(), ResourceRow.created_at)
_ROW = select(*ResourceRow.__table__.columns)
_BY_ID = _ROW.where(*_KEPT, ResourceRow.id == bindparam("of_id", type_=Uuid))
_DEFAULT = _ROW.where(*_USABLE).order_by(*_BEST).limit(literal_column("1"))


async def default_provider(db: Db) -> Resource[ProviderSpec] | None:
    """The system default: the one marked so, otherwise the oldest active one."""
    row = await db.scalar(select(ResourceRow).where(*_USABLE).order_by(*_BEST).limit(1))
    return None if row is None else store.load(db, PROVIDER, row)


async def resolve(db: Db, provider_id: UUID | None, model: str | None) -> Resolved:
    """The provider an agent asks: its own, else the default; and the model: the agent's, else the provider's.

    Raises `NoProviderError`.
    """
    provider = await store.fetch(db, PROVIDER, provider_id) if provider_id else await default_provider(db)
    return _resolved(provider, provider_id, model)


async def resolve_now(database: Database, provider_id: UUID | None, model: str | None) -> Resolved:
    """The same outside of a transaction, in one cheap round trip. Raises `NoProviderError`."""
    statement, parameters = (_BY_ID, {"of_id": provider_id}) if provider_id else (_DEFAULT, {})
    rows = await database.lookup(statement, parameters)
    provider = store.load(database, PROVIDER, ResourceRow.loaded(rows[0]._asdict())) if rows else None
    return _resolved(provider, provider_id, model)


async def resolve_fallback(database: Database, provider: str, model: str | None) -> Resolved:
    """A provider by its name, and the model: the one named, else the provider's. Raises `NoProviderError`."""
    found = await lookup.find(database, PROVIDER, "", provider)
    if found is None:
        raise NoProviderError(f"The LLM provider '{provider}' does not exist any more")
    return _resolved(found, found.id, model)


def direct(provider: Resource[ProviderSpec], model: str) -> Resolved:
    """One of a provider's models, named by whoever asks."""
    return Resolved(provider.id, provider.name, _config(provider.spec), model)


def _resolved(provider: Resource[ProviderSpec] | None, provider_id: UUID | None, model: str | None) -> Resolved:
    if provider is None or not provider.is_active:
        what = "The agent's LLM provider is not available" if provider_id else "No LLM provider is configured"
        raise NoProviderError(f"{what}: create one with POST /api/v1/llm-providers")
    name = model or provider.spec.model
    if name is None:
        if provider.spec.provider_type != "scripted":
            raise NoProviderError(f"LLM provider '{provider.name}' has no default_model and the agent names no model")
        name = "scripted"
    return Resolved(provider.id, provider.name, _config(provider.spec), name)


def _config(spec: ProviderSpec) -> ProviderConfig:
    return ProviderConfig(spec.provider_type, spec.api_key, spec.api_endpoint, spec.config)

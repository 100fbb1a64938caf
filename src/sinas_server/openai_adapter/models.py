"""The models of the adapter: agents as `agent:namespace/name`, a provider's models as `provider/model`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import select

from sinas_server.agents.kind import AGENT, AgentSpec, default_agent
from sinas_server.kernel import lookup, store
from sinas_server.kernel.access import AccessResource, Caller
from sinas_server.kernel.errors import ForbiddenError, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Filter, Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db
from sinas_server.openai_adapter.errors import ParameterError, UnknownModelError
from sinas_server.providers.kind import PROVIDER, ProviderSpec
from sinas_server.providers.resolve import Resolved, direct

MODELS = AccessResource(
    name="models",
    description="Models of LLM providers, asked directly through the OpenAI adapter; the path is `provider/model`.",
    actions=("use",),
    namespaced=True,
)
AGENT_PREFIX = "agent:"


@dataclass(frozen=True)
class Model:
    """A model as it is listed; `created` in seconds since 1970."""

    id: str
    created: int
    owned_by: str


def may_use(caller: Caller, provider: Resource[ProviderSpec], model: str) -> bool:
    """Whether the caller may ask this model directly."""
    return caller.allows(MODELS.name, "use", provider.owner_id, provider.name, model)


async def list_models(db: Db, caller: Caller) -> list[Model]:
    """The agents the caller may chat with, then the provider models he may use; each as far as it is declared."""
    usable = Filter(action="chat", active_only=True)
    agents = [_agent_model(agent) for agent in await store.find(db, caller, AGENT, usable)]
    providers = await _providers(db)
    return agents + [_provider_model(provider, name) for provider, name in _offers(caller, providers)]


async def find_model(runtime: Runtime, caller: Caller, name: str) -> Model:
    """One model. Raises `UnknownModelError`, `ParameterError`."""
    found = await find_target(runtime, caller, name)
    return _agent_model(found) if isinstance(found, Resource) else Model(f"{found.name}/{found.model}", 0, found.name)


def _agent_model(agent: Resource[AgentSpec]) -> Model:
    return Model(f"{AGENT_PREFIX}{agent.ref}", int(agent.created_at.timestamp()), "sinas")


def _provider_model(provider: Resource[ProviderSpec], name: str) -> Model:
    return Model(f"{provider.name}/{name}", int(provider.created_at.timestamp()), provider.name)


async def _providers(db: Db) -> list[Resource[ProviderSpec]]:
    """Every active provider: who may use its models is a permission of its own."""
    query = select(ResourceRow).where(
        ResourceRow.kind == PROVIDER.name, ResourceRow.deleted_at.is_(None), ResourceRow.is_active
    )
    return [store.load(db, PROVIDER, row) for row in await db.scalars(query.order_by(ResourceRow.name))]


def _offers(
    caller: Caller, providers: Iterable[Resource[ProviderSpec]]
) -> Iterator[tuple[Resource[ProviderSpec], str]]:
    for provider in providers:
        for name in provider.spec.offered:
            if may_use(caller, provider, name):
                yield provider, name


async def find_target(runtime: Runtime, caller: Caller, name: str | None) -> Resource[AgentSpec] | Resolved:
    """The agent or the provider's model behind a name. Raises `UnknownModelError`, `ParameterError`.

    Without a name: the default agent. A provider's name claims every `name/...`, so that nobody's agent can take the
    place of a model; the agent is then reached with its prefix.
    """
    if not name:
        return await _default(runtime, caller)
    if name.startswith(AGENT_PREFIX):
        return await _agent(runtime, caller, name, name.removeprefix(AGENT_PREFIX))
    head, slash, model = name.partition("/")
    if not slash:
        return await _bare(runtime, caller, name)
    provider = await lookup.find(runtime.database, PROVIDER, "", head)
    if provider is None:
        return await _agent(runtime, caller, name, name)
    if not provider.is_active or not model or not _opens(provider, model) or not may_use(caller, provider, model):
        raise UnknownModelError(name)
    return direct(provider, model)


def _opens(provider: Resource[ProviderSpec], model: str) -> bool:
    """Whether a model of the provider can be named: any, unless the provider lists its models."""
    closed = provider.spec.models or provider.spec.provider_type == "scripted"
    return not closed or model in provider.spec.offered


async def _default(runtime: Runtime, caller: Caller) -> Resource[AgentSpec]:
    async with runtime.database.unit() as db:
        agent = await default_agent(db)
    if agent is None or not caller.allows(AGENT.plural, "chat", agent.owner_id, agent.namespace, agent.name):
        raise ParameterError("model", "there is no default agent that you may chat with: name a model")
    return agent


async def _agent(runtime: Runtime, caller: Caller, asked: str, ref: str) -> Resource[AgentSpec]:
    namespace, slash, name = ref.partition("/")
    try:
        return await lookup.use(
            runtime.database, caller, AGENT, (namespace, name) if slash else ("default", ref), "chat"
        )
    except (NotFoundError, ForbiddenError) as error:
        raise UnknownModelError(asked) from error


async def _bare(runtime: Runtime, caller: Caller, name: str) -> Resolved:
    """A model's name alone: the one provider that declares it, or the default one if that takes any name."""
    async with runtime.database.unit() as db:
        providers = await _providers(db)
    found = [provider for provider, offered in _offers(caller, providers) if offered == name]
    if len(found) > 1:
        choices = " or ".join(f"{provider.name}/{name}" for provider in found)
        raise ParameterError("model", f"several providers offer '{name}': ask for {choices}")
    if not found:
        default = [provider for provider in providers if provider.spec.is_default]
        found = [provider for provider in default if _opens(provider, name) and may_use(caller, provider, name)]
    if not found:
        raise UnknownModelError(name)
    return direct(found[0], name)

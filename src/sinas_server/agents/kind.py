"""The agent kind: an assistant's instructions, model and everything it may use."""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationInfo
from sqlalchemy import select

from sinas_server.kernel import store
from sinas_server.kernel.default import replace_default
from sinas_server.kernel.fields import JinjaSource, JsonSchema, is_stored
from sinas_server.kernel.kind import IdOf, Kind, Ref, Spec, reference
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db
from sinas_server.kit.jinja import check as check_template

Access = Literal["readonly", "readwrite"]


def _named(value: str) -> str:
    if not re.fullmatch(r"(?:[^/\s][^/]*/)?[^/\s][^/]*", value) or len(value) > 511:
        raise ValueError("must be a reference like `namespace/name`")
    return value if "/" in value else f"default/{value}"


def _templates(value: JsonValue) -> None:
    """Raise `ValueError` for a text anywhere in it that is no Jinja2 template."""
    if isinstance(value, str):
        check_template(value)
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _templates(item)


def _parameters(value: dict[str, dict[str, JsonValue]], info: ValidationInfo) -> dict[str, dict[str, JsonValue]]:
    for name, parameters in () if is_stored(info) else value.items():
        for parameter, given in parameters.items():
            try:
                _templates(given)
            except ValueError as error:
                raise ValueError(f"{name}: {parameter}: {error}") from error
    return value


Reference = Annotated[str, AfterValidator(_named)]
Parameters = Annotated[dict[str, dict[str, JsonValue]], AfterValidator(_parameters)]
"""Tool → parameter → value, or `{value, locked}`."""


def _object_from_name(key: str) -> BeforeValidator:
    """YAML and older clients write the bare name where an object is meant."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_serialization_defaults_required=True)


class EnabledSkill(_Part):
    """A skill of an agent."""

    skill: Reference = Field(description="The skill, as `namespace/name`.")
    preload: bool = Field(default=False, description="Part of the system prompt; otherwise a tool the model calls.")


class EnabledStore(_Part):
    """A store of an agent."""

    store: Reference = Field(description="The store, as `namespace/name`.")
    access: Access = Field(default="readonly", description="Whether the agent may write.")


class EnabledCollection(_Part):
    """A file collection of an agent."""

    collection: Reference = Field(description="The collection, as `namespace/name`.")
    access: Access = Field(default="readonly", description="Whether the agent may write.")


class EnabledConnector(_Part):
    """A connector of an agent."""

    connector: Reference = Field(description="The connector, as `namespace/name`.")
    operations: list[str] = Field(default=[], description="The operations it may use.")
    parameters: dict[str, dict[str, JsonValue]] = Field(
        default={}, description="Operation → parameter → value (a Jinja2 template); locked, hidden from the model."
    )


class FallbackProvider(_Part):
    """An LLM provider that answers where the ones before it fail."""

    provider: str = Field(min_length=1, max_length=255, description="Its name.")
    model: str | None = Field(default=None, max_length=255, description="The model; none means the provider's default.")


class HistorySummary(_Part):
    """Who keeps the summary of a conversation."""

    provider: str | None = Field(
        default=None, max_length=255, description="The LLM provider that writes it, by name; none means the agent's."
    )
    model: str | None = Field(
        default=None,
        max_length=255,
        description="The model; none means the provider's default, or the agent's model where no provider is named.",
    )


class Hook(_Part):
    """A function that sees a message before it counts."""

    model_config = ConfigDict(populate_by_name=True)

    function: Reference = Field(description="The function, as `namespace/name`.")
    run_async: bool = Field(default=False, alias="async", description="Do not wait for it.")
    on_timeout: Literal["block", "passthrough"] = Field(
        default="passthrough",
        description="What happens when it takes too long or fails: the turn fails, or the message passes.",
    )
    timeout_seconds: float = Field(default=10.0, gt=0, le=300, description="The longest a synchronous hook may take.")


class Hooks(_Part):
    """The hooks of an agent."""

    on_user_message: list[Hook] = Field(
        default=[], description="Run on what the user says, in order, before the model is asked."
    )
    on_assistant_message: list[Hook] = Field(
        default=[],
        description="Run on the final answer, in order. With a synchronous one, the answer is sent in one piece when "
        "it has passed, and what the model says beside tool calls is not shown. What an asynchronous one returns "
        "changes the stored message.",
    )


class InitialMessage(_Part):
    """An example message that every chat begins with."""

    role: Literal["user", "assistant", "system"] = Field(description="Who says it.")
    content: str = Field(description="What is said.")


class SystemTool(_Part):
    """A tool of the platform itself."""

    name: str = Field(min_length=1, description="Its name, like `codeExecution`.")
    connections: list[str] | None = Field(default=None, description="The database connections it may look at.")


class AgentSpec(Spec):
    """What a user declares about an assistant."""

    description: str | None = Field(default=None, description="What it is for; other agents' models read it.")
    llm_provider_id: Annotated[UUID | None, IdOf("llm_provider", "llm_provider_name")] = Field(
        default=None, description="The LLM provider to use; none means the system default."
    )
    model: str | None = Field(default=None, max_length=255, description="The model; none means the provider's default.")
    fallback_providers: list[Annotated[FallbackProvider, _object_from_name("provider")]] = Field(
        default=[],
        max_length=10,
        description="Providers asked in this order where the ones before fail before the answer has begun.",
    )
    temperature: float = Field(default=0.7, ge=0, le=2, description="Sampling temperature.")
    max_tokens: int | None = Field(default=None, ge=1, le=10_000_000, description="The most tokens of an answer.")
    system_prompt: JinjaSource | None = Field(
        default=None, description="The system message: a Jinja2 template over the chat's input."
    )
    input_schema: JsonSchema = Field(default={}, description="JSON Schema of the input a chat is created with.")
    output_schema: JsonSchema = Field(default={}, description="JSON Schema the answer must conform to.")
    initial_messages: list[InitialMessage] | None = Field(
        default=None, description="Example messages that every chat begins with."
    )
    enabled_functions: list[Reference] = Field(default=[], description="Functions offered as tools.")
    enabled_agents: list[Reference] = Field(default=[], description="Agents it may call.")
    enabled_skills: list[Annotated[EnabledSkill, _object_from_name("skill")]] = Field(
        default=[], description="Skills it has."
    )
    function_parameters: Parameters = Field(
        default={},
        description="Function → parameter → default value (Jinja2), or `{value, locked}` to hide it from the model.",
    )
    approval_policy: dict[str, Literal["allow", "ask", "deny"]] = Field(
        default={},
        description="Pattern of tools (`shop__*`, `shop/refund`) → whether a call is carried out, needs the user's "
        "approval, or is not possible; the first that fits counts. A function's own `requires_approval` stays.",
    )
    tool_timeouts: dict[str, Annotated[float, Field(gt=0, le=86_400)]] = Field(
        default={},
        description="Pattern of tools → the longest a call may take, in seconds; the first that fits counts.",
    )
    status_templates: dict[str, JinjaSource] = Field(
        default={}, description="Tool → what to show while it runs: a Jinja2 template over its arguments."
    )
    enabled_queries: list[Reference] = Field(default=[], description="Queries offered as tools.")
    query_parameters: Parameters = Field(
        default={}, description="Query → parameter → default value, or `{value, locked}`."
    )
    enabled_stores: list[Annotated[EnabledStore, _object_from_name("store")]] = Field(
        default=[], description="Stores it may use."
    )
    enabled_collections: list[Annotated[EnabledCollection, _object_from_name("collection")]] = Field(
        default=[], description="File collections it may search."
    )
    enabled_components: list[Reference] = Field(default=[], description="Components it may show.")
    enabled_connectors: list[EnabledConnector] = Field(default=[], description="Connectors offered as tools.")
    history_summary: HistorySummary | None = Field(
        default=None,
        description="Where a conversation outgrows `MAX_HISTORY_MESSAGES` or the provider's `context_window`: give the "
        "model a summary of the older messages, made as it goes on. None: they are dropped.",
    )
    hooks: Hooks | None = Field(default=None, description="Functions that see messages before they count.")
    icon: str | None = Field(default=None, max_length=2048, description="`url:…` or `collection:ns/name/file`.")
    is_default: bool = Field(default=False, description="Whether `GET /agents/default` gives this one.")
    default_job_timeout: int | None = Field(
        default=None, ge=1, le=86_400, description="Longest work on a turn in its chats, in seconds."
    )
    default_keep_alive: bool = Field(
        default=False, description="Whether its chats' turns go on after the client disconnects."
    )
    system_tools: list[str | SystemTool] = Field(
        default=[],
        description="Tools of the platform it may use: `askUser`, `codeExecution`, `configIntrospection`, "
        "`packageManagement`; others are left out.",
    )


def _references(spec: AgentSpec) -> Iterable[Ref]:
    if spec.llm_provider_id is not None:
        yield Ref("llm_provider", id=str(spec.llm_provider_id), field="llm_provider_id")
    for fallback in spec.fallback_providers:
        yield Ref("llm_provider", name=fallback.provider, field="fallback_providers")
    if spec.history_summary is not None and spec.history_summary.provider is not None:
        yield Ref("llm_provider", name=spec.history_summary.provider, field="history_summary")
    for field, kind, targets in _enabled(spec):
        for target in targets:
            yield reference(kind, target, hard=False, field=field)


def _enabled(spec: AgentSpec) -> Iterator[tuple[str, str, list[str]]]:
    yield "enabled_functions", "function", spec.enabled_functions
    yield "enabled_agents", "agent", spec.enabled_agents
    yield "enabled_skills", "skill", [item.skill for item in spec.enabled_skills]
    yield "enabled_queries", "query", spec.enabled_queries
    yield "enabled_stores", "store", [item.store for item in spec.enabled_stores]
    yield "enabled_collections", "collection", [item.collection for item in spec.enabled_collections]
    yield "enabled_components", "component", spec.enabled_components
    yield "enabled_connectors", "connector", [item.connector for item in spec.enabled_connectors]
    hooks = spec.hooks or Hooks()
    yield "hooks", "function", [hook.function for hook in (*hooks.on_user_message, *hooks.on_assistant_message)]


async def _one_default(db: Db, old: Resource[AgentSpec] | None, new: Resource[AgentSpec] | None) -> None:
    if new is not None and new.spec.is_default and not (old is not None and old.spec.is_default):
        await replace_default(db, AGENT, new)


AGENT: Kind[AgentSpec] = Kind(
    name="agent",
    plural="agents",
    spec=AgentSpec,
    name_pattern=r"^[a-zA-Z][a-zA-Z0-9 _\-():]*$",
    references=_references,
    on_change=_one_default,
    actions=("create", "read", "update", "delete", "chat", "test"),
    discover="chat",
    description="Configurable AI assistants.",
)


async def default_agent(db: Db) -> Resource[AgentSpec] | None:
    """The system default agent, if there is one."""
    row = await db.scalar(
        select(ResourceRow)
        .where(ResourceRow.kind == AGENT.name, ResourceRow.deleted_at.is_(None), ResourceRow.is_active)
        .where(ResourceRow.spec["is_default"].as_boolean())
        .limit(1)
    )
    return None if row is None else store.load(db, AGENT, row)

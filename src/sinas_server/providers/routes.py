"""Usage and budgets over HTTP: what was asked and what it cost, and what is left."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, SQLColumnExpression, Text, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.elements import Label

from sinas_server.identity.tables import ApiKeyRow, UserRow
from sinas_server.kernel.access import AccessResource, Caller, OwnedColumns
from sinas_server.kernel.errors import ForbiddenError, InvalidError, NotFoundError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, Run, new_router
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Database, Db
from sinas_server.kit.clock import Time, now
from sinas_server.providers.admit import Quota, quotas
from sinas_server.providers.tables import UsageRow
from sinas_server.providers.usage import Payer

USAGE = AccessResource(
    name="usage",
    description="Calls of models: their tokens and what they cost; `own` are the caller's.",
    actions=("read",),
    users_may=("read:own",),
)
DAYS = 30
MOST_GROUPS = 1000
Group = Literal["user", "agent", "chat", "api_key", "provider", "model", "day", "hour"]
_UTC = func.timezone("UTC", UsageRow.at)
KEYS: Mapping[Group, SQLColumnExpression[str] | SQLColumnExpression[str | None]] = {
    "user": cast(UsageRow.user_id, Text),
    "agent": UsageRow.agent,
    "chat": cast(UsageRow.chat_id, Text),
    "api_key": cast(UsageRow.api_key_id, Text),
    "provider": UsageRow.provider,
    "model": UsageRow.model,
    "day": func.to_char(_UTC, "YYYY-MM-DD"),
    "hour": func.to_char(_UTC, 'YYYY-MM-DD"T"HH24:00:00"Z"'),
}


class _Answer(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class Totals(_Answer):
    """What some calls took together."""

    calls: int = Field(description="Answers of models.")
    prompt_tokens: int = Field(description="Tokens they read.")
    completion_tokens: int = Field(description="Tokens they wrote.")
    total_tokens: int = Field(description="Both.")
    cache_read_tokens: int = Field(description="Of those read: from the provider's cache.")
    cache_write_tokens: int = Field(description="Of those read: written to that cache.")
    cost_usd: float | None = Field(description="US dollars; null if the price of no call is known.")
    unpriced_calls: int = Field(description="Calls without a known price.")
    estimated_calls: int = Field(description="Calls cut off before their tokens were known; these are estimates.")
    errors: int = Field(description="Calls that came to no answer.")


class UsageGroup(Totals):
    """What one group took."""

    group: dict[str, str | None] = Field(description="What its calls have in common: `user`, `model`, `day`, ...")
    label: str | None = Field(description="The user's address, or the API key's name, where it is grouped by that.")


class UsageResponse(_Answer):
    """Usage in a span of time."""

    since: datetime = Field(description="From when.")
    until: datetime = Field(description="Until when, exclusive.")
    totals: Totals = Field(description="All together.")
    groups: list[UsageGroup] = Field(description="By group, those with the most tokens first.")
    truncated: bool = Field(description=f"Whether there are more than {MOST_GROUPS} groups.")


class UsageQuery(BaseModel):
    """Which usage."""

    group_by: list[Group] = Field(default=[], max_length=4, description="What to group by; may be repeated.")
    since: Time | None = Field(default=None, description=f"From when (ISO 8601); by default {DAYS} days ago.")
    until: Time | None = Field(default=None, description="Until when, exclusive; by default now.")
    user: UUID | None = Field(default=None, description="Only this user's.")
    agent: str | None = Field(default=None, max_length=600, description="Only this agent's: `namespace/name`.")
    chat: UUID | None = Field(default=None, description="Only this chat's.")
    api_key: UUID | None = Field(default=None, description="Only what began with this API key.")


def _sums() -> list[Label[object]]:
    answered = UsageRow.failed.is_(False)
    counts = ("prompt_tokens", "completion_tokens", "cache_read_tokens", "cache_write_tokens")
    sums = [func.coalesce(func.sum(getattr(UsageRow, name)), 0).label(name) for name in counts]
    tokens = func.coalesce(func.sum(UsageRow.prompt_tokens + UsageRow.completion_tokens), 0)
    return [
        func.count().filter(answered).label("calls"),
        *sums,
        tokens.label("total_tokens"),
        func.sum(UsageRow.cost_usd).filter(answered).label("cost_usd"),
        func.count().filter(answered, UsageRow.cost_usd.is_(None)).label("unpriced_calls"),
        func.count().filter(UsageRow.estimated).label("estimated_calls"),
        func.count().filter(UsageRow.failed).label("errors"),
    ]


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {
        key: float(value) if isinstance(value, Decimal) and key == "cost_usd" else value
        for key, value in values.items()
    }


async def _usage(db: Db, where: list[ColumnElement[bool]], only: UsageQuery) -> tuple[Totals, list[UsageGroup], bool]:
    totals = (await db.execute(select(*_sums()).where(*where))).one()
    keys: list[Label[str]] = [KEYS[name].label(f"by_{name}") for name in dict.fromkeys(only.group_by)]
    if not keys:
        return Totals.model_validate(_plain(totals._asdict())), [], False
    query = select(*keys, *_sums()).where(*where).group_by(*(key.element for key in keys))
    ordered = query.order_by(func.sum(UsageRow.prompt_tokens + UsageRow.completion_tokens).desc(), *keys)
    rows = [_plain(row._asdict()) for row in (await db.execute(ordered.limit(MOST_GROUPS + 1))).all()]
    labels = await _labels(db, only.group_by, rows)
    groups = [
        UsageGroup.model_validate(
            {
                **row,
                "group": {name: row[f"by_{name}"] for name in only.group_by},
                "label": next((labels[row[key]] for key in ("by_user", "by_api_key") if row.get(key) in labels), None),
            }
        )
        for row in rows[:MOST_GROUPS]
    ]
    return Totals.model_validate(_plain(totals._asdict())), groups, len(rows) > MOST_GROUPS


async def _labels(db: Db, groups: list[Group], rows: list[dict[str, object]]) -> dict[object, str]:
    """Id → what people call it, for those that still exist."""
    labels: dict[object, str] = {}
    named: dict[Group, tuple[InstrumentedAttribute[UUID], InstrumentedAttribute[str]]]
    named = {"user": (UserRow.id, UserRow.email), "api_key": (ApiKeyRow.id, ApiKeyRow.name)}
    for group, (key, label) in named.items():
        ids = [UUID(str(row[f"by_{group}"])) for row in rows if row.get(f"by_{group}")]
        if group in groups and ids:
            found = await db.execute(select(key, label).where(key.in_(ids)))
            labels.update((str(row[0]), row[1]) for row in found)
    return labels


async def _read(db: CurrentDb, caller: CurrentCaller, only: Annotated[UsageQuery, Query()]) -> UsageResponse:
    """Administrators see everyone's, others their own."""
    if not caller.allows(USAGE.name, "read", caller.id):
        raise ForbiddenError("Not authorized: this needs sinas.usage.read:own")
    until = only.until or now()
    since = only.since or until - timedelta(days=DAYS)
    if since >= until:
        raise InvalidError([(("query", "since"), "must be before until")])
    where = [caller.visible(USAGE.name, "read", OwnedColumns((), UsageRow.user_id))]
    where += [UsageRow.at >= since, UsageRow.at < until]
    filters = {"user_id": only.user, "agent": only.agent, "chat_id": only.chat, "api_key_id": only.api_key}
    where += [getattr(UsageRow, name) == value for name, value in filters.items() if value is not None]
    totals, groups, truncated = await _usage(db, where, only)
    return UsageResponse(since=since, until=until, totals=totals, groups=groups, truncated=truncated)


class QuotaResponse(_Answer):
    """A budget that the caller's calls count towards."""

    name: str = Field(description="Its name.")
    applies_to: str = Field(description="`user`, `role`, `agent` or `api_key`.")
    each_user: bool = Field(description="Whether it counts the caller's calls alone.")
    period: str = Field(description="`day`, `month` or `total`.")
    max_tokens: int | None = Field(description="The most tokens.")
    used_tokens: int = Field(description="Those of this period.")
    remaining_tokens: int | None = Field(description="Those that are left.")
    max_usd: float | None = Field(description="The most US dollars.")
    used_usd: float = Field(description="Those of this period.")
    remaining_usd: float | None = Field(description="Those that are left.")
    resets_at: datetime | None = Field(description="When it begins anew.")

    @classmethod
    def of(cls, quota: Quota) -> "QuotaResponse":
        """A budget as it is shown."""
        left, usd = quota.max_tokens, quota.max_usd
        return cls(
            name=quota.name,
            applies_to=quota.applies_to,
            each_user=quota.each_user,
            period=quota.period,
            max_tokens=left,
            used_tokens=quota.tokens,
            remaining_tokens=None if left is None else max(0, left - quota.tokens),
            max_usd=None if usd is None else float(usd),
            used_usd=float(quota.cost_usd),
            remaining_usd=None if usd is None else max(0.0, float(usd - quota.cost_usd)),
            resets_at=quota.resets_at,
        )


AgentRef = Annotated[str | None, Query(max_length=600, description="With the budgets of this agent: `namespace/name`.")]


async def _quota(runtime: Run, caller: CurrentCaller, agent: AgentRef = None) -> list[QuotaResponse]:
    """An empty list: nothing limits the caller."""
    agent_id = None if agent is None else await _agent_id(runtime.database, caller, agent)
    payer = Payer(caller.id, caller.api_key, agent_id)
    return [QuotaResponse.of(quota) for quota in await quotas(runtime.database, payer)]


async def _agent_id(database: Database, caller: Caller, ref: str) -> UUID:
    """An agent the caller may chat with. Raises `NotFoundError`."""
    namespace, _, name = ref.rpartition("/")
    at = (ResourceRow.namespace == (namespace or "default"), ResourceRow.name == name)
    query = select(ResourceRow.id, ResourceRow.owner_id, ResourceRow.namespace, ResourceRow.name)
    rows = await database.read(query.where(ResourceRow.kind == "agent", ResourceRow.deleted_at.is_(None), *at))
    if not rows or not caller.allows("agents", "chat", rows[0].owner_id, rows[0].namespace, rows[0].name):
        raise NotFoundError(f"agent '{ref}' not found")
    found: UUID = rows[0].id
    return found


def _management_router() -> APIRouter:
    router = new_router("", "usage")
    router.get("/usage", summary="What was asked of models, and what it cost", name="read")(_read)
    return router


def _runtime_router() -> APIRouter:
    router = new_router("", "usage")
    router.get("/usage/quota", summary="What is left of the budgets that count your calls", name="quota")(_quota)
    return router


management_router = _management_router()
runtime_router = _runtime_router()

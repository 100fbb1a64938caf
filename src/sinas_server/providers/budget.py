"""Budgets: how many tokens or dollars a user, a role, an agent or an API key may spend in a day, a month or at all."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Literal
from uuid import UUID

from pydantic import Field
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    Text,
    and_,
    cast,
    delete,
    func,
    literal,
    literal_column,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import Uuid

from sinas_server.identity.tables import ApiKeyRow, RoleRow, UserRoleRow, UserRow
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.kind import Kind, Ref, Spec, reference
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.outbox import audit_change
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kernel.unit import Db
from sinas_server.providers.kind import ANY_NAME
from sinas_server.providers.tables import BudgetRow, EarlierUsageRow, SpendingRow, UsageRow
from sinas_server.providers.usage import NOBODY, period_start


class BudgetSpec(Spec):
    """A limit on what may be spent on models; without `max_tokens` and `max_usd` it only counts."""

    applies_to: Literal["user", "role", "agent", "api_key"] = Field(description="Whose calls count.")
    subject: str = Field(
        min_length=1,
        max_length=600,
        description="A user's e-mail address, a role's name, an agent as `namespace/name`, an API key's id.",
    )
    each_user: bool = Field(
        default=False, description="Count for each user apart, of a role or an agent, instead of all together."
    )
    period: Literal["day", "month", "total"] = Field(
        default="month", description="When it begins anew: each day or month (UTC), or never."
    )
    max_tokens: int | None = Field(default=None, ge=0, le=2**62, description="The most tokens, read and written.")
    max_usd: float | None = Field(
        default=None, ge=0, le=1e9, description="The most US dollars; calls without a known price cost nothing here."
    )

    def counts_like(self, other: "BudgetSpec") -> bool:
        """Whether the same calls count towards both in the same periods."""
        fields = ("applies_to", "subject", "each_user", "period")
        return all(getattr(self, name) == getattr(other, name) for name in fields)


def _references(spec: BudgetSpec) -> Iterable[Ref]:
    if spec.applies_to == "agent":
        yield reference("agent", spec.subject, hard=True, field="subject")


async def _on_change(db: Db, old: Resource[BudgetSpec] | None, new: Resource[BudgetSpec] | None) -> None:
    await audit_change(db, old, new)
    known = new or old
    if known is None:
        return
    # Calls that are being recorded now must be counted by them or by us, and in no budget that is going.
    await db.execute(text("LOCK TABLE usage IN SHARE MODE"))
    if new is None or not new.is_active:
        await db.execute(delete(BudgetRow).where(BudgetRow.id == known.id))
        return
    spec, subject = new.spec, await _subject(db, new.spec)
    values = {
        "name": new.name,
        "applies_to": spec.applies_to,
        "subject_id": subject,
        "each_user": spec.each_user,
        "period": spec.period,
        "max_tokens": spec.max_tokens,
        "max_usd": None if spec.max_usd is None else Decimal(str(spec.max_usd)),
    }
    row = insert(BudgetRow).values(id=new.id, **values)
    await db.execute(row.on_conflict_do_update(index_elements=["id"], set_=values))
    if old is None or not old.is_active or not spec.counts_like(old.spec):
        await _recount(db, new.id, spec, subject)


async def _subject(db: Db, spec: BudgetSpec) -> UUID:
    """The id of whom it is about. Raises `InvalidError`."""
    found = await db.scalar(_named(spec))
    if found is None:
        noun = spec.applies_to.replace("_", " ").replace("api", "API")
        raise InvalidError([(("body", "subject"), f"there is no {noun} '{spec.subject}'")])
    return found


def _named(spec: BudgetSpec) -> Select[UUID]:
    if spec.applies_to == "user":
        return select(UserRow.id).where(UserRow.email == spec.subject.strip().lower())
    if spec.applies_to == "role":
        return select(RoleRow.id).where(RoleRow.name == spec.subject)
    if spec.applies_to == "api_key":
        return select(ApiKeyRow.id).where(cast(ApiKeyRow.id, Text) == spec.subject.strip().lower())
    namespace, _, name = spec.subject.rpartition("/")
    at = (ResourceRow.namespace == (namespace or "default"), ResourceRow.name == name)
    return select(ResourceRow.id).where(ResourceRow.kind == "agent", ResourceRow.deleted_at.is_(None), *at)


async def _recount(db: Db, budget_id: UUID, spec: BudgetSpec, subject: UUID) -> None:
    """What has been spent in this period already; of a role, by those who are in it now."""
    await db.execute(delete(SpendingRow).where(SpendingRow.budget_id == budget_id))
    start = period_start(literal(spec.period))
    whose = _CALLS.c.user_id if spec.each_user else literal(NOBODY, Uuid)
    spent = (
        select(
            literal(budget_id, Uuid), whose.label("whose"), start, func.sum(_CALLS.c.tokens), func.sum(_CALLS.c.cost)
        )
        .where(_CALLS.c.at >= start, _counts(spec, subject))
        .group_by(text("whose"))
        .having(func.count() > 0)
    )
    columns = ["budget_id", "counted_for", "period_start", "tokens", "cost_usd"]
    await db.execute(insert(SpendingRow).from_select(columns, spent))


def _calls() -> CompoundSelect[*tuple[object, ...]]:
    tokens, cost = UsageRow.prompt_tokens + UsageRow.completion_tokens, func.coalesce(UsageRow.cost_usd, 0)
    kept = select(
        *(UsageRow.user_id, UsageRow.api_key_id, UsageRow.agent_id, UsageRow.at),
        *(tokens.label("tokens"), cost.label("cost")),
    )
    earlier = EarlierUsageRow
    forgotten = select(
        *(earlier.user_id, earlier.api_key_id, earlier.agent_id, func.to_timestamp(0)), earlier.tokens, earlier.cost_usd
    )
    return kept.union_all(forgotten)


_CALLS = _calls().subquery("calls")
"""Every call that was kept; what came before, in sums, at the beginning of time."""


def _counts(spec: BudgetSpec, subject: UUID) -> ColumnElement[bool]:
    if spec.applies_to == "user":
        return _CALLS.c.user_id == subject
    if spec.applies_to == "agent":
        return _CALLS.c.agent_id == subject
    if spec.applies_to == "api_key":
        return _CALLS.c.api_key_id == subject
    return _CALLS.c.user_id.in_(select(UserRoleRow.user_id).where(UserRoleRow.role_id == subject))


BUDGET: Kind[BudgetSpec] = Kind(
    name="budget",
    plural="budgets",
    spec=BudgetSpec,
    namespaced=False,
    name_pattern=ANY_NAME,
    references=_references,
    on_change=_on_change,
    description="Limits on what may be spent on models.",
    admin_only=True,
    packaged=False,
)


async def _forget_spending(runtime: Runtime) -> None:
    """Counters of days and months that nobody asks for any more."""
    start = SpendingRow.period_start
    old = and_(start < func.now() - literal_column("interval '62 days'"), start > func.to_timestamp(0))
    await runtime.database.rows(delete(SpendingRow).where(old))


SPENDING_LOOP = Loop(name="forget old spending", every_seconds=24 * 3600, step=_forget_spending)

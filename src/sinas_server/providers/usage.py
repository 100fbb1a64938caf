"""Recording what models were asked and what it cost: one row per call, in the transaction that keeps the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    SQLColumnExpression,
    Uuid,
    bindparam,
    case,
    cast,
    func,
    join,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from sinas_server.backends.db.direct import constant
from sinas_server.backends.llm import Usage
from sinas_server.identity.tables import UserRoleRow
from sinas_server.kernel.unit import Database, Db
from sinas_server.providers.prices import cost_of
from sinas_server.providers.resolve import Resolved
from sinas_server.providers.tables import BudgetRow, SpendingRow, UsageRow

NOBODY = UUID(int=0)
CHARACTERS_PER_TOKEN = 4
"""For estimates; the usual rule of thumb for English text."""


@dataclass(frozen=True)
class Payer:
    """On whose account a model is asked."""

    user_id: UUID
    api_key_id: UUID | None = None
    agent_id: UUID | None = None
    agent: str | None = None


@dataclass(frozen=True)
class Place:
    """Where in a conversation; empty for a direct call."""

    chat_id: UUID | None = None
    turn_id: UUID | None = None
    step: int | None = None


@dataclass(frozen=True)
class ModelCall:
    """One call of a model. `failed`: it came to no answer; `estimated`: its tokens are guessed.

    `guessed`: for how many tokens its request was taken, where that mattered.
    `replayed`: nobody was asked, the answer comes from a recording; it costs nothing and counts nowhere.
    """

    payer: Payer
    provider: Resolved
    usage: Usage = field(default_factory=Usage)
    place: Place = field(default_factory=Place)
    failed: bool = False
    estimated: bool = False
    guessed: int = 0
    replayed: bool = False

    @property
    def cost_usd(self) -> Decimal | None:
        """What it cost; None if no price is known, nothing if it failed."""
        return (
            Decimal(0)
            if self.failed or self.replayed
            else cost_of(self.provider.config, self.provider.model, self.usage)
        )


def tokens_in(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def period_start(period: SQLColumnExpression[str]) -> ColumnElement[datetime]:
    """When the current day or month (UTC) began; for `total` the beginning of time."""
    return case(
        (period == constant("day"), func.date_trunc(constant("day"), func.now(), constant("UTC"))),
        (period == constant("month"), func.date_trunc(constant("month"), func.now(), constant("UTC"))),
        else_=func.to_timestamp(literal_column("0")),
    )


def concerned() -> ColumnElement[bool]:
    """The budgets that a call counts towards, by `of_user`, `of_key` and `of_agent`."""
    user, key, agent = (bindparam(name, type_=Uuid) for name in ("of_user", "of_key", "of_agent"))
    roles = select(UserRoleRow.role_id).where(UserRoleRow.user_id == user)
    return or_(BudgetRow.subject_id.in_([user, key, agent]), BudgetRow.subject_id.in_(roles))


def counted_for() -> ColumnElement[UUID]:
    """Whose spending counts towards a budget."""
    nobody: ColumnElement[UUID] = literal_column(f"'{NOBODY}'::uuid", Uuid)
    return case((BudgetRow.each_user, bindparam("of_user", type_=Uuid)), else_=nobody)


def of(payer: Payer) -> dict[str, object]:
    """The parameters that name a payer."""
    return {"of_user": payer.user_id, "of_key": payer.api_key_id, "of_agent": payer.agent_id}


_COLUMNS = UsageRow.__table__.columns
_NEW = {
    # Selected from nowhere, a parameter that is null would have no type.
    column.name: cast(bindparam(f"new_{column.name}", type_=column.type), column.type)
    for column in _COLUMNS
    if column.name not in ("id", "at")
}


def recording(given: CTE | None = None) -> ReturningInsert[*tuple[object, ...]]:
    """Inserts the call, and adds it to the budgets it counts towards; in the order of ids, so that none deadlock.

    `given`: what else must have a row for that. The parameters are those of `spending`.
    """
    new = select(*_NEW.values()).where(bindparam("is_spent", type_=Boolean))
    written = (
        insert(UsageRow)
        .from_select(list(_NEW), new if given is None else new.select_from(given))
        .on_conflict_do_nothing()
        .returning(
            (UsageRow.prompt_tokens + UsageRow.completion_tokens).label("tokens"),
            func.coalesce(UsageRow.cost_usd, 0).label("cost"),
        )
        .cte("written")
    )
    of_call = (counted_for(), period_start(BudgetRow.period), written.c.tokens, written.c.cost)
    both = join(BudgetRow, written, true())  # one call: every budget meets its one row
    mine = select(BudgetRow.id, *of_call).select_from(both).where(concerned()).order_by(BudgetRow.id)
    columns = ["budget_id", "counted_for", "period_start", "tokens", "cost_usd"]
    counted = insert(SpendingRow).from_select(columns, mine)
    return counted.on_conflict_do_update(
        index_elements=columns[:3],
        set_={
            "tokens": SpendingRow.tokens + counted.excluded.tokens,
            "cost_usd": SpendingRow.cost_usd + counted.excluded.cost_usd,
        },
    ).returning(SpendingRow.budget_id)


_RECORD = recording()
_NOTHING: Mapping[str, None] = {f"new_{name}": None for name in _NEW} | dict.fromkeys(("of_user", "of_key", "of_agent"))


def spending(call: ModelCall | None) -> dict[str, object]:
    """The parameters of `recording`; nothing is written where there was no call, or nobody was asked."""
    if call is None or call.replayed:
        return {**_NOTHING, "is_spent": False}
    payer, place, usage = call.payer, call.place, call.usage
    new = {
        "user_id": payer.user_id,
        "api_key_id": payer.api_key_id,
        "agent_id": payer.agent_id,
        "agent": payer.agent,
        "chat_id": place.chat_id,
        "turn_id": place.turn_id,
        "step": place.step,
        "provider": call.provider.name,
        "model": call.provider.model,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cost_usd": call.cost_usd,
        "failed": call.failed,
        "estimated": call.estimated,
    }
    return {**{f"new_{name}": value for name, value in new.items()}, **of(payer), "is_spent": True}


async def record(db: Db, call: ModelCall) -> None:
    """Write the call down together with whatever else the transaction keeps. A step of a turn is written once."""
    await (await db.connection()).execute(_RECORD, spending(call))


async def record_now(database: Database, call: ModelCall) -> None:
    """Write down a call that belongs to nothing else, by itself."""
    await database.direct(_RECORD, spending(call))

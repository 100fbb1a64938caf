"""Whether a model may be asked: budgets are looked up before each call, and what runs now is held in Redis meanwhile.

PostgreSQL knows exactly what was spent. Redis only knows which calls are running and about how much they will take, so
that many at once cannot all pass on the last token; without Redis the limits hold but for what runs at that moment.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from time import monotonic
from typing import cast
from uuid import UUID, uuid4

import structlog
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, SQLColumnExpression, and_, case, func, literal_column, select

from sinas_server.backends.llm import AssistantMessage, Message, ModelRequest, TextPart, ToolMessage, Usage, UserMessage
from sinas_server.kernel.errors import TooManyRequestsError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Database
from sinas_server.kit.cancel import to_the_end
from sinas_server.kit.clock import now
from sinas_server.providers.prices import cost_of
from sinas_server.providers.resolve import Resolved
from sinas_server.providers.tables import BudgetRow, SpendingRow
from sinas_server.providers.usage import Payer, concerned, counted_for, of, period_start, tokens_in

log = structlog.get_logger()
HELD_SECONDS = 900
"""A call that was never given back, because its process died, is forgotten after this long."""
EXPECTED_ANSWER = 500
"""Tokens that an answer is expected to take, where the request sets no smaller limit."""
NEVER_AGAIN_SECONDS = 86_400
"""What `Retry-After` says for a budget that does not begin anew."""


class OverBudgetError(TooManyRequestsError):
    """A budget is used up; the message names it."""

    code = "budget_exhausted"


@dataclass(frozen=True)
class Quota:
    """A budget and what is left of it for a caller."""

    id: UUID
    name: str
    applies_to: str
    each_user: bool
    period: str
    max_tokens: int | None
    max_usd: Decimal | None
    tokens: int
    """Spent in this period."""
    cost_usd: Decimal
    counted_for: UUID
    resets_at: datetime | None

    @property
    def is_used_up(self) -> bool:
        """Whether nothing is left."""
        return (self.max_tokens is not None and self.tokens >= self.max_tokens) or (
            self.max_usd is not None and self.cost_usd >= self.max_usd
        )


def _period_end(period: SQLColumnExpression[str]) -> ColumnElement[datetime]:
    day: ColumnElement[timedelta] = literal_column("interval '1 day'")
    month: ColumnElement[timedelta] = literal_column("interval '1 month'")
    is_day, is_month = period == literal_column("'day'"), period == literal_column("'month'")
    start = period_start(period)
    return case((is_day, start + day), (is_month, start + month), else_=literal_column("NULL::timestamptz"))


_QUOTAS = (
    select(
        BudgetRow.id,
        BudgetRow.name,
        BudgetRow.applies_to,
        BudgetRow.each_user,
        BudgetRow.period,
        BudgetRow.max_tokens,
        BudgetRow.max_usd,
        func.coalesce(SpendingRow.tokens, literal_column("0")).label("tokens"),
        func.coalesce(SpendingRow.cost_usd, literal_column("0")).label("cost_usd"),
        counted_for().label("counted_for"),
        _period_end(BudgetRow.period).label("resets_at"),
    )
    .select_from(BudgetRow)
    .outerjoin(
        SpendingRow,
        and_(
            SpendingRow.budget_id == BudgetRow.id,
            SpendingRow.counted_for == counted_for(),
            SpendingRow.period_start == period_start(BudgetRow.period),
        ),
    )
    .where(concerned())
    .order_by(BudgetRow.name)
)


async def quotas(database: Database, payer: Payer) -> list[Quota]:
    """The budgets that a payer's calls count towards: one look-up."""
    return [Quota(*row) for row in await database.lookup(_QUOTAS, of(payer))]


async def check_budgets(runtime: Runtime, payer: Payer) -> list[Quota]:
    """The payer's budgets, none of them used up. Raises `OverBudgetError`."""
    found = await quotas(runtime.database, payer)
    for quota in found:
        if quota.is_used_up:
            raise OverBudgetError(_words(quota), _seconds_until(quota.resets_at))
    return found


def _words(quota: Quota) -> str:
    if quota.max_tokens is not None and quota.tokens >= quota.max_tokens:
        spent = f"{quota.tokens} of {quota.max_tokens} tokens"
    else:
        spent = f"${quota.cost_usd:.4f} of ${quota.max_usd:.4f}"
    per = "" if quota.period == "total" else f" this {quota.period}"
    until = "" if quota.resets_at is None else f"; it begins anew at {quota.resets_at:%Y-%m-%d %H:%M} UTC"
    subject = quota.applies_to.replace("_", " ").replace("api", "API")
    return f"The budget '{quota.name}' of the {subject} is used up: {spent}{per}{until}"


def _seconds_until(moment: datetime | None) -> int:
    return NEVER_AGAIN_SECONDS if moment is None else int((moment - now()).total_seconds()) + 1


def _expected(request: ModelRequest) -> Usage:
    """About what a request will take."""
    answer = min(request.max_tokens or EXPECTED_ANSWER, EXPECTED_ANSWER)
    return Usage(prompt_tokens=tokens_asked(request), completion_tokens=answer)


def tokens_asked(request: ModelRequest) -> int:
    """About how many tokens the model has to read; tools and media are left out."""
    return tokens_in("".join(text for message in request.messages for text in texts_of(message)))


def texts_of(message: Message) -> list[str]:
    """The texts of a message that a model has to read."""
    if isinstance(message, UserMessage):
        return [part.text for part in message.parts if isinstance(part, TextPart)]
    if isinstance(message, AssistantMessage):
        return [message.text, *(call.arguments for call in message.tool_calls)]
    return [message.content if isinstance(message, ToolMessage) else message.text]


_HOLD = """
local clock = redis.call('TIME')
local at = tonumber(clock[1])
for i, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', at)
  local tokens, cost = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    local held_tokens, held_cost = string.match(member, '^[^|]+|([^|]+)|([^|]+)$')
    tokens, cost = tokens - tonumber(held_tokens), cost - tonumber(held_cost)
  end
  if tokens <= 0 or cost <= 0 then return i end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, at + tonumber(ARGV[1]), ARGV[2])
  redis.call('EXPIRE', key, ARGV[1])
end
return 0
"""
"""Holds a call (`id|tokens|dollars`) under every budget for some seconds, unless what is left of one is held already:
then gives the number of that one, else 0."""
UNLIMITED = 10**15
LOOK_SECONDS = 0.5
REDIS_SECONDS = 5.0
"""How long Redis may take to answer; nobody is kept from asking, or from stopping, by one that hangs."""


@asynccontextmanager
async def within_budgets(
    runtime: Runtime, payer: Payer, provider: Resolved, request: ModelRequest, patience_seconds: float = 0
) -> AsyncIterator[None]:
    """Ask the model inside: the block holds about what the call takes. Raises `OverBudgetError` before it.

    `patience_seconds`: how long to wait while what is left is only held by calls that are running.
    """
    usage = _expected(request)
    cost = cost_of(provider.config, provider.model, usage) or Decimal(0)
    member = f"{uuid4().hex}|{usage.prompt_tokens + usage.completion_tokens}|{cost:.10f}"
    limits = await _admitted(runtime, payer, member, patience_seconds)
    try:
        yield
    finally:
        if limits:  # also while a request is being torn down, where every wait is canceled
            await to_the_end(_give_back(runtime, limits, member))


async def _admitted(runtime: Runtime, payer: Payer, member: str, patience_seconds: float) -> list[Quota]:
    """The budgets that hold the call now. Raises `OverBudgetError`."""
    deadline = monotonic() + patience_seconds
    while True:
        limits = await check_budgets(runtime, payer)
        full = await _hold(runtime, limits, member) if limits else None
        if full is None:
            return limits
        if monotonic() >= deadline:
            raise OverBudgetError(f"What is left of the budget '{full.name}' is held by calls that are running now", 2)
        await asyncio.sleep(LOOK_SECONDS)


def _key(quota: Quota) -> str:
    return f"sinas:budget:{quota.id}:{quota.counted_for}"


async def _hold(runtime: Runtime, limits: Sequence[Quota], member: str) -> Quota | None:
    """Hold the call under every budget; else the one of which nothing is left now."""
    left: list[str] = []
    for quota in limits:
        left.append(str(UNLIMITED if quota.max_tokens is None else quota.max_tokens - quota.tokens))
        left.append(str(UNLIMITED if quota.max_usd is None else quota.max_usd - quota.cost_usd))
    keys = [_key(quota) for quota in limits]
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            full = cast(int, await runtime.redis.eval(_HOLD, len(keys), *keys, str(HELD_SECONDS), member, *left))
    except asyncio.CancelledError:  # it may be held already
        await to_the_end(_give_back(runtime, limits, member))
        raise
    except (RedisError, OSError) as error:
        log.warning("budgets do not count what is running now: Redis does not answer", error=str(error))
        return None
    return limits[full - 1] if full else None


async def _give_back(runtime: Runtime, limits: Sequence[Quota], member: str) -> None:
    try:
        async with asyncio.timeout(REDIS_SECONDS), runtime.redis.pipeline(transaction=False) as pipe:
            for quota in limits:
                pipe.zrem(_key(quota), member)
            await pipe.execute()
    except (RedisError, OSError) as error:
        log.warning("a call stays held under its budgets for a while", error=str(error))

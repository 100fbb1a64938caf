"""Rate limits of login: counters in Redis, one script for all counters of a request."""

from dataclasses import dataclass
from typing import cast

import structlog
from redis.exceptions import RedisError

from sinas_server.kernel.errors import TooManyRequestsError
from sinas_server.kernel.runtime import Runtime

log = structlog.get_logger()
_COUNT = """
local wait = 0
for i, key in ipairs(KEYS) do
  local count = redis.call('INCR', key)
  if count == 1 then redis.call('EXPIRE', key, ARGV[1]) end
  if count > tonumber(ARGV[i + 1]) then wait = math.max(wait, redis.call('TTL', key)) end
end
return wait
"""
"""Counts a request under every key and gives the seconds to wait, 0 if it is within all limits (fixed windows)."""


@dataclass(frozen=True)
class _Limit:
    key: str
    most: int


async def limit_login(runtime: Runtime, address: str | None, email: str) -> None:
    """Count a login request. Raises `TooManyRequestsError` beyond a limit of its origin or its e-mail address."""
    settings = runtime.settings
    by_email = _Limit(f"login:email:{email}", settings.rate_limit_login_email_max)
    by_address = _Limit(f"login:ip:{address}", settings.rate_limit_login_ip_max)
    await _limit(runtime, by_email, by_address)


async def limit_verification(runtime: Runtime, address: str | None) -> None:
    """Count a code verification. Raises `TooManyRequestsError` beyond the limit of its origin."""
    await _limit(runtime, _Limit(f"otp:ip:{address}", runtime.settings.rate_limit_otp_ip_max))


async def limit_provider_login(runtime: Runtime, address: str | None) -> None:
    """Count a login at the OpenID Connect provider. Raises `TooManyRequestsError` beyond the limit of its origin."""
    await _limit(runtime, _Limit(f"oidc:ip:{address}", runtime.settings.rate_limit_login_ip_max))


async def _limit(runtime: Runtime, *limits: _Limit) -> None:
    keys = [f"sinas:rate:{limit.key}" for limit in limits]
    arguments = [runtime.settings.rate_limit_window_seconds, *(limit.most for limit in limits)]
    try:
        wait = cast(int, await runtime.redis.eval(_COUNT, len(keys), *keys, *map(str, arguments)))
    except (RedisError, OSError) as error:
        log.warning("rate limits are not in effect: Redis does not answer", error=str(error))
        return
    if wait:
        raise TooManyRequestsError("Too many attempts; try again later", wait)

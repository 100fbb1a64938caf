"""Values that wait in Redis under a random name and can be taken once; sealed, so that none can be slipped in there."""

import secrets
from collections.abc import Mapping
from typing import cast

import orjson
from redis.exceptions import RedisError

from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.crypto import UndecryptableError, hash_token


def _place(runtime: Runtime, purpose: str, name: str) -> str:
    return f"sinas:once:{purpose}:{hash_token(runtime.settings.signing_key, name)}"


async def keep(runtime: Runtime, purpose: str, value: Mapping[str, str], seconds: int) -> str:
    """The name under which `value` can be taken once, for this purpose. Raises `UnavailableError`."""
    name = secrets.token_urlsafe(32)
    place = _place(runtime, purpose, name)
    sealed = runtime.database.sealer.seal(orjson.dumps({**value, "place": place}).decode())
    try:
        await runtime.redis.set(place, sealed, ex=seconds)
    except (RedisError, OSError) as error:
        raise UnavailableError("logins cannot be kept track of now; try again", {"Retry-After": "1"}) from error
    return name


async def take(runtime: Runtime, purpose: str, name: str) -> dict[str, str] | None:
    """The value of this name; None if there is none, or if it was taken or is too old. Raises `UnavailableError`."""
    place = _place(runtime, purpose, name)
    try:
        sealed = cast("bytes | None", await runtime.redis.getdel(place))
    except (RedisError, OSError) as error:
        raise UnavailableError("logins cannot be kept track of now; try again", {"Retry-After": "1"}) from error
    if sealed is None:
        return None
    try:
        value = cast(dict[str, str], orjson.loads(runtime.database.sealer.open(sealed.decode())))
    except UndecryptableError:
        return None
    return value if value.pop("place", None) == place else None

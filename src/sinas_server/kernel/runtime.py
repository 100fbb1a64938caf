"""Everything a running process works with, built once at its start and passed explicitly."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from sinas_server.backends.llm.open import ModelPool
from sinas_server.backends.mail import Mailer
from sinas_server.backends.oidc import OidcProvider
from sinas_server.backends.queue import Wake
from sinas_server.backends.sandbox import Sandbox
from sinas_server.backends.stream import EventStreams, Signals
from sinas_server.kernel.access import AccessResource, Caller
from sinas_server.kernel.kind import Kind
from sinas_server.kernel.tool import Toolset
from sinas_server.kernel.unit import Database, Db
from sinas_server.settings import Settings


@dataclass(frozen=True)
class Credentials:
    """What a request brought to say who it is; either may be missing."""

    bearer: str | None = None
    api_key: str | None = None


Authenticate = Callable[["Runtime", Credentials], Awaitable[Caller]]
TaskHandler = Callable[["Runtime", dict[str, Any]], Awaitable[None]]
Departure = Callable[[Db, "Runtime", UUID], Awaitable[None]]
"""What a slice does with the data of a user who is being deleted, in that transaction."""


@dataclass(frozen=True)
class Runtime:
    """The parts of a process. `sandbox` exists in function workers only."""

    settings: Settings
    database: Database
    signals: Signals
    streams: EventStreams
    wake: Wake
    redis: Redis
    mailer: Mailer
    authenticate: Authenticate
    kinds: Mapping[str, Kind[Any]] = field(default_factory=dict)
    resources: tuple[AccessResource, ...] = ()
    """What permissions are about besides the kinds."""
    toolsets: tuple[Toolset, ...] = ()
    models: ModelPool = field(default_factory=ModelPool)
    tasks: Mapping[str, TaskHandler] = field(default_factory=dict)
    departures: tuple[Departure, ...] = ()
    oidc: OidcProvider | None = None
    """Whose users may log in, if `OIDC_ISSUER` names someone."""
    sandbox: Sandbox | None = None
    worker_name: str = ""
    used_keys: dict[UUID, datetime] = field(default_factory=dict)
    """When API keys were last used here, until it is written down."""

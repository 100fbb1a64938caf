"""Everything a running process works with, built once at its start and passed explicitly."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from sqlalchemy import Select

from sinas_server.backends.blobs import Blobs
from sinas_server.backends.delivery import Receivers
from sinas_server.backends.llm.open import ModelPool
from sinas_server.backends.mail import Mailer
from sinas_server.backends.oidc import OidcProvider
from sinas_server.backends.queue import Wake
from sinas_server.backends.render import Renderer
from sinas_server.backends.sandbox import Sandbox
from sinas_server.backends.stream import EventStreams, Signals
from sinas_server.kernel.access import AccessResource, Caller
from sinas_server.kernel.kind import Kind
from sinas_server.kernel.store import AnyResource
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
class BatchMembers:
    """One sort of work that batches hold, told by the slice that has it."""

    rows: Select[*tuple[Any, ...]]
    """All members of all batches: `batch_id`, `batch_index`, `id`, `status`, `error`, `chat_id`, `trigger_id`."""
    cancel: Callable[[Db, "Runtime", UUID], Awaitable[int]]
    """Cancels what has not ended of a batch, in that transaction: how many members."""


@dataclass(frozen=True)
class Runtime:
    """The parts of a process. `sandbox` and `shared_pool` exist in function workers only."""

    settings: Settings
    database: Database
    signals: Signals
    streams: EventStreams
    wake: Wake
    redis: Redis
    mailer: Mailer
    renderer: Renderer
    models: ModelPool
    blobs: Blobs
    authenticate: Authenticate
    kinds: Mapping[str, Kind[Any]] = field(default_factory=dict)
    resources: tuple[AccessResource, ...] = ()
    """What permissions are about besides the kinds."""
    toolsets: tuple[Toolset, ...] = ()
    tasks: Mapping[str, TaskHandler] = field(default_factory=dict)
    departures: tuple[Departure, ...] = ()
    batch_members: tuple[BatchMembers, ...] = ()
    receivers: Receivers = field(default_factory=lambda: Receivers(()))
    """Who may be told the end of what was asked for."""
    oidc: OidcProvider | None = None
    """Whose users may log in, if `OIDC_ISSUER` names someone."""
    sandbox: Sandbox | None = None
    shared_pool: Sandbox | None = None
    """The same for trusted code."""
    worker_name: str = ""
    used_keys: dict[UUID, datetime] = field(default_factory=dict)
    """When API keys were last used here, until it is written down."""
    remembered: dict[tuple[str, str, str], AnyResource] = field(default_factory=dict)
    """By kind, namespace and name: resources as they were when they were last read (`lookup.recall`)."""

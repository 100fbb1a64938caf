"""What every test may ask for: real servers, started once per session and per xdist worker."""

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.fernet import Fernet
from fastapi import FastAPI
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy import create_engine, text

from sinas_server.backends.db import open_engine
from sinas_server.backends.embedded import embedded_servers
from sinas_server.backends.mail.outbox import OutboxMailer
from sinas_server.backends.queue.redis import RedisWake
from sinas_server.backends.stream.redis import RedisSignals, RedisStreams
from sinas_server.identity.bootstrap import bootstrap
from sinas_server.identity.mail import MAIL_TASK, send_mail
from sinas_server.identity.reference import ADMINS, GUESTS, RESOURCES, USERS
from sinas_server.identity.resolve import authenticate
from sinas_server.identity.routers import MANAGEMENT_ROUTERS, RUNTIME_ROUTERS
from sinas_server.kernel.http import install_error_handlers
from sinas_server.kernel.kind import Kind
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import Base
from sinas_server.kernel.unit import Database
from sinas_server.kit.crypto import Sealer
from sinas_server.settings import Settings
from tests.people import Person, http_client, make_person

ENCRYPTION_KEY = Fernet.generate_key().decode()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of a PostgreSQL and of a Valkey that only this session uses."""
    root: Path = tmp_path_factory.mktemp("sinas", numbered=True)
    with embedded_servers(root) as addresses:
        yield addresses


@pytest.fixture(scope="session")
def database_url(servers: tuple[str, str]) -> str:
    """The address of an empty PostgreSQL database."""
    return servers[0]


@pytest.fixture(scope="session")
def redis_url(servers: tuple[str, str]) -> str:
    """The address of an empty Valkey."""
    return servers[1]


@pytest.fixture(scope="session")
def tables(database_url: str) -> str:
    """The address of a database with every table."""
    sync = create_engine(database_url.replace("postgresql:", "postgresql+psycopg:"))
    Base.metadata.create_all(sync)
    sync.dispose()
    return database_url


@pytest.fixture
def settings(tables: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings of an embedded server; override to change some."""
    return Settings(
        _env_file=None,
        sinas_mode="embedded",
        sinas_data_dir=tmp_path,
        secret_key=SecretStr("only-for-tests-" * 3),
        encryption_key=SecretStr(ENCRYPTION_KEY),
        database_url=SecretStr(tables),
        redis_url=SecretStr(redis_url),
    )


@pytest.fixture
def kinds() -> Mapping[str, Kind[Any]]:
    """The kinds that the runtime knows; override to add some."""
    return {}


@pytest.fixture
async def runtime(settings: Settings, kinds: Mapping[str, Kind[Any]]) -> AsyncIterator[Runtime]:
    """A runtime on the real servers: empty tables but for what every installation starts with."""
    sealer = Sealer(settings.encryption_keys)
    assert settings.database_url is not None
    database = Database(open_engine(settings.database_url.get_secret_value()), sealer)
    redis = Redis.from_url(settings.redis_url.get_secret_value())
    await redis.flushdb()
    names = ", ".join(table.name for table in Base.metadata.sorted_tables)
    await database.rows(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    made = Runtime(
        settings=settings,
        database=database,
        signals=RedisSignals(redis),
        streams=RedisStreams(redis),
        wake=RedisWake(redis),
        redis=redis,
        mailer=OutboxMailer(settings.sinas_data_dir / "outbox", "example.com"),
        authenticate=authenticate,
        kinds=kinds,
        resources=RESOURCES,
        tasks={MAIL_TASK: send_mail},
        worker_name="test",
    )
    await bootstrap(made)
    yield made
    await database.close()
    await redis.aclose()


@pytest.fixture
def app(runtime: Runtime) -> FastAPI:
    """The application with the routes of identity."""
    made = FastAPI()
    made.state.runtime = runtime
    install_error_handlers(made)
    for router in RUNTIME_ROUTERS:
        made.include_router(router)
    for router in MANAGEMENT_ROUTERS:
        made.include_router(router, prefix="/api/v1")
    return made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without credentials."""
    async with http_client(app) as made:
        yield made


@pytest.fixture
async def admin(runtime: Runtime, app: FastAPI) -> AsyncIterator[Person]:
    """The administrator that every installation starts with."""
    person = await make_person(runtime, app, [ADMINS], runtime.settings.superadmin_email)
    async with person.http:
        yield person


@pytest.fixture
async def user(runtime: Runtime, app: FastAPI) -> AsyncIterator[Person]:
    """Someone with the role Users."""
    person = await make_person(runtime, app, [USERS])
    async with person.http:
        yield person


@pytest.fixture
async def guest(runtime: Runtime, app: FastAPI) -> AsyncIterator[Person]:
    """Someone with the role GuestUsers."""
    person = await make_person(runtime, app, [GUESTS])
    async with person.http:
        yield person

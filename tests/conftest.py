"""What every test may ask for: real servers, started once per session, and the whole application on them."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx2
import pytest
import structlog
from cryptography.fernet import Fernet
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import create_engine

from sinas_server.app import create_app
from sinas_server.backends.db import open_engine
from sinas_server.backends.embedded import embedded_servers
from sinas_server.identity.reference import ADMINS, GUESTS, USERS
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import Base
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests import bound
from tests.installation import Installation
from tests.live import Live, running
from tests.people import Person, http_client, make_person

ENCRYPTION_KEY = Fernet.generate_key().decode()


def pytest_configure(config: pytest.Config) -> None:
    """Whatever is started here can be stopped with Ctrl-C or a hang-up, also if this run was put into the background.

    What ignores a signal has its children ignore it: those of `nohup`, and of a shell's `&`.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    config.pluginmanager.register(bound)


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """As the product logs: the rich ones of structlog's default take seconds for an error inside an application."""
    render = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, render])


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


@pytest.fixture(scope="session")
def usual_settings(tables: str, redis_url: str) -> Settings:
    """Reading the environment takes longer than many a test."""
    return Settings(
        _env_file=None,
        sinas_mode="embedded",
        secret_key=SecretStr("only-for-tests-" * 3),
        encryption_key=SecretStr(ENCRYPTION_KEY),
        database_url=SecretStr(tables),
        redis_url=SecretStr(redis_url),
    )


@pytest.fixture
def settings(usual_settings: Settings, tmp_path: Path) -> Settings:
    """Settings of an embedded server; override to change some."""
    return usual_settings.model_copy(update={"sinas_data_dir": tmp_path})


@pytest.fixture(scope="session")
def installation(tables: str, redis_url: str) -> Iterator[Installation]:
    with closing(Installation(tables, redis_url)) as made:
        yield made


engine_of = cache(open_engine)
"""One for all tests, though each has connections of its own: what was compiled is not compiled again."""


@pytest.fixture
async def runtime(settings: Settings, installation: Installation) -> AsyncIterator[Runtime]:
    """A runtime on the real servers: empty tables but for what every installation starts with."""
    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sinas_server.roles.open_engine", engine_of)
            made = await stack.enter_async_context(open_runtime(settings, "test"))
        await installation.begin(made)
        yield made


@dataclass
class Applications:
    """One application for all tests whose settings shape it alike: its routes take most of a second to prepare."""

    runtime: Runtime | None = None
    """Whose turn it is."""
    made: dict[tuple[object, ...], FastAPI] = field(default_factory=dict)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Runtime]:
        assert self.runtime is not None
        yield self.runtime

    def of(self, settings: Settings) -> FastAPI:
        """That of these settings."""
        shape = (settings.cors_origins, settings.domain)
        if shape not in self.made:
            self.made[shape] = create_app(settings, self._opened)
        return self.made[shape]


@pytest.fixture(scope="session")
def applications() -> Applications:
    return Applications()


@pytest.fixture
async def app(settings: Settings, runtime: Runtime, applications: Applications) -> AsyncIterator[FastAPI]:
    """The whole application, started."""
    applications.runtime = runtime
    made = applications.of(settings)
    async with made.router.lifespan_context(made):
        yield made


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


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A real Sinas, started by `sinas up`, for the tests that use it from outside."""
    with running(tmp_path_factory.mktemp("live") / "data") as started:
        yield started

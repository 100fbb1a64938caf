"""What every test may ask for: real servers, started once per session and per xdist worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sinas_server.backends.embedded import embedded_servers


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

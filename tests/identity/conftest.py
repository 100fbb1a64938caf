"""What tests of identity share."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from sinas_server.kernel.runtime import Runtime
from tests.people import Person, http_client, make_key

KeyClient = Callable[..., Awaitable[httpx2.AsyncClient]]


@pytest.fixture
async def with_key(runtime: Runtime, app: FastAPI) -> AsyncIterator[KeyClient]:
    """Makes a client that sends an API key of `person` with these permissions."""
    made: list[httpx2.AsyncClient] = []

    async def make(person: Person, *permissions: str) -> httpx2.AsyncClient:
        made.append(http_client(app, {"X-API-Key": await make_key(runtime, person.id, *permissions)}))
        return made[-1]

    yield make
    for client in made:
        await client.aclose()


@pytest.fixture
def outbox(runtime: Runtime) -> Path:
    """Where mail goes without a mail server."""
    return runtime.settings.sinas_data_dir / "outbox"

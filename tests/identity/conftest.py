"""What tests of identity share."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.identity.codes import Codes
from tests.mailbox import delivered, part_of
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


@pytest.fixture
def overrides() -> dict[str, object]:
    return {}


@pytest.fixture
def settings(settings: Settings, overrides: dict[str, object]) -> Settings:
    return settings.model_copy(
        update={"rate_limit_login_ip_max": 1000, "rate_limit_login_email_max": 1000, "rate_limit_otp_ip_max": 1000}
        | overrides
    )


@pytest.fixture
async def code_for(runtime: Runtime) -> AsyncIterator[Codes]:
    """The code that a mail brought, sent by a real worker."""
    async with delivered(runtime) as mailbox:

        async def code(address: str) -> str:
            mail = await mailbox.take(address)
            found = re.search(r"\b\d{6}\b", part_of(mail, "plain") or part_of(mail, "html") or "")
            assert found is not None
            return found[0]

        yield code

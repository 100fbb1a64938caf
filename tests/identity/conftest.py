"""What tests of identity share."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from email import message_from_bytes, policy
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from sinas_server.kernel.job import Worker
from sinas_server.kernel.outbox import TASK_JOB
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.identity.codes import Codes
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
async def code_for(runtime: Runtime, outbox: Path) -> AsyncIterator[Codes]:
    """The code that a mail brought, sent by a real worker."""
    worker = asyncio.create_task(Worker(runtime, TASK_JOB, 2).run())

    def newest(address: str) -> Iterator[str]:
        for path in sorted(outbox.glob("*.eml"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            mail = message_from_bytes(path.read_bytes(), policy=policy.default)
            if mail["To"] == address:
                body = mail.get_body()
                assert body is not None
                found = re.search(r"\b\d{6}\b", body.get_content())
                assert found is not None
                path.unlink()
                yield found[0]

    async def code(address: str) -> str:
        while True:
            for found in newest(address):
                return found
            await asyncio.sleep(0.02)

    yield code
    worker.cancel()
    with suppress(asyncio.CancelledError):
        await worker

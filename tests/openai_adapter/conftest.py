"""The official SDK of OpenAI for Python, unmodified, on the application in this process."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI
from pydantic import JsonValue

from tests.chats.conftest import CountingTools, declare, runtime, tools, worker
from tests.fakes.llm_server import FakeLLM, Provider
from tests.people import Person

__all__ = ["CountingTools", "declare", "runtime", "tools", "worker"]

Json = dict[str, Any]
URL = "/adapters/openai/v1"
Connect = Callable[[str], AsyncOpenAI]


@pytest.fixture
async def connect(app: FastAPI) -> AsyncIterator[Connect]:
    """`connect(token)` gives an SDK client that sends this token, a session's or an API key."""
    opened: list[AsyncOpenAI] = []

    def make(token: str) -> AsyncOpenAI:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        http = httpx2.AsyncClient(transport=transport)
        opened.append(AsyncOpenAI(base_url=f"http://sinas.test{URL}", api_key=token, http_client=http, max_retries=0))
        return opened[-1]

    yield make
    for client in opened:
        await client.close()


@pytest.fixture
async def sdk(connect: Connect, user: Person) -> AsyncOpenAI:
    """The SDK of an ordinary user."""
    return connect(user.token)


@pytest.fixture
async def admin_sdk(connect: Connect, admin: Person) -> AsyncOpenAI:
    """The SDK of an administrator."""
    return connect(admin.token)


@pytest.fixture
async def fake() -> AsyncIterator[FakeLLM]:
    """A provider's server."""
    async with FakeLLM() as server:
        yield server


Provide = Callable[..., Awaitable[str]]


@pytest.fixture
def provide(admin: Person, fake: FakeLLM) -> Provide:
    """Declares a provider that asks the fake: `await provide("main", "openai", models=[...])`; gives its id."""

    async def create(name: str, kind: Provider = "openai", **fields: JsonValue) -> str:
        endpoint = fake.endpoint(kind)
        body = {"name": name, "provider_type": kind, "api_key": "sk-provider-key", "api_endpoint": endpoint}
        answer = await admin.http.post("/api/v1/llm-providers", json={**body, "default_model": "fake-large", **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    return create

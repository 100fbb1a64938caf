"""The official SDK of OpenAI for Python, unmodified, on the application in this process."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI

from tests.chats.conftest import CountingTools, declare, runtime, tools, worker
from tests.people import Person
from tests.providers.conftest import Provide, fake, provide

__all__ = ["CountingTools", "Provide", "declare", "fake", "provide", "runtime", "tools", "worker"]

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

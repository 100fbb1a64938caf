"""A provider's fake server, and an agent that asks it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic import JsonValue

from tests.fakes.llm_server import FakeLLM, Provider
from tests.people import Person

Json = dict[str, Any]
Provide = Callable[..., Awaitable[str]]
Ask = Callable[..., Awaitable[None]]


@pytest.fixture
async def fake() -> AsyncIterator[FakeLLM]:
    """A provider's server."""
    async with FakeLLM() as server:
        yield server


@pytest.fixture
def provide(admin: Person, fake: FakeLLM) -> Provide:
    """Declares a provider that asks the fake: `await provide("main", "openai", models=[...])`; gives its id."""

    async def create(name: str, kind: Provider = "openai", **fields: JsonValue) -> str:
        body = {"name": name, "provider_type": kind, "api_key": "sk-provider-key", "api_endpoint": fake.endpoint(kind)}
        answer = await admin.http.post("/api/v1/llm-providers", json={**body, "default_model": "fake-large", **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    return create


@pytest.fixture
def agent(provide: Provide, admin: Person) -> Ask:
    """Declares the agent `default/payer` over the provider `main`: `await agent(config={...})` of the provider."""

    async def create(**fields: JsonValue) -> None:
        body = {"name": "payer", "llm_provider_id": await provide("main", **fields)}
        answer = await admin.http.post("/api/v1/agents", json=body)
        assert answer.status_code == 201, answer.text

    return create

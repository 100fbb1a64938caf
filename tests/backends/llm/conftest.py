"""A fake provider, and the model that talks to it."""

from collections.abc import AsyncIterator

import pytest

from sinas_server.backends.llm import LanguageModel, ProviderConfig
from sinas_server.backends.llm.open import open_model
from tests.backends.llm.asking import KEY, PROVIDERS
from tests.fakes.llm_server import FakeLLM, Provider


@pytest.fixture
async def fake() -> AsyncIterator[FakeLLM]:
    async with FakeLLM() as server:
        yield server


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Provider:
    found: Provider = request.param
    return found


@pytest.fixture
async def model(fake: FakeLLM, provider: Provider) -> AsyncIterator[LanguageModel]:
    opened = open_model(ProviderConfig(provider, KEY, fake.endpoint(provider)))
    yield opened
    await opened.close()

"""A fake provider, and the model that talks to it."""

from collections.abc import AsyncIterator

import pytest

from sinas_server.backends.llm import LanguageModel, ProviderConfig, completions
from sinas_server.backends.llm.remote import RemoteModel
from sinas_server.backends.render import Renderer
from sinas_server.backends.render.process import ProcessRenderer
from tests.backends.llm.asking import KEY, WAYS, Connect, Verbatim, Way
from tests.fakes.llm_server import FakeLLM, Provider


@pytest.fixture
async def fake() -> AsyncIterator[FakeLLM]:
    async with FakeLLM() as server:
        yield server


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    """What fills the templates of the scripted model."""
    made = ProcessRenderer(10)
    yield made
    await made.close()


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are read to their ends, and their connections used again, however long the ends take to come."""
    monkeypatch.setattr(completions, "DRAIN_SECONDS", 60.0)


@pytest.fixture(params=WAYS, ids=[f"{way.provider}{' verbatim' * way.verbatim}" for way in WAYS])
def way(request: pytest.FixtureRequest) -> Way:
    """A provider, and whether it is asked with requests that it gets as they are."""
    found: Way = request.param
    return found


@pytest.fixture
def provider(way: Way) -> Provider:
    return way.provider


@pytest.fixture
def connect(way: Way) -> Connect:
    """`connect(config)` opens a model that is asked in this way."""
    return lambda config: Verbatim(RemoteModel(config)) if way.verbatim else RemoteModel(config)


@pytest.fixture
async def model(fake: FakeLLM, provider: Provider, connect: Connect) -> AsyncIterator[LanguageModel]:
    opened = connect(ProviderConfig(provider, KEY, fake.endpoint(provider)))
    yield opened
    await opened.close()

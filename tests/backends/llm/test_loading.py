"""Nobody pays for a provider's library before it is asked, and nobody pays for another provider's."""

import asyncio
import subprocess
import sys

import pytest

from tests.backends.llm.asking import PROVIDERS
from tests.fakes.llm_server import FakeLLM, Provider

HEAVY = {"pydantic_ai", "openai", "anthropic", "mistralai"}
LOADED = f"print(*sorted({HEAVY!r} & sys.modules.keys()))"
OPEN = """
import asyncio, sys
from sinas_server.backends.llm import ModelRequest, ProviderConfig, TextPart, UserMessage
from sinas_server.backends.llm.open import open_model
from sinas_server.backends.render.process import ProcessRenderer
model = open_model(ProviderConfig({provider!r}, "key", {endpoint!r}), ProcessRenderer(1))
async def ask():
    async for _ in model.stream(ModelRequest("fake-large", (UserMessage((TextPart("Hi"),)),))):
        pass
async def run():
    await {call}
    await model.close()
asyncio.run(run())
"""


async def loaded(code: str) -> set[str]:
    """Which of the libraries a new process has loaded after running the code."""

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", f"import sys\n{code}\n{LOADED}"], capture_output=True, text=True, check=True
        ).stdout

    return set((await asyncio.to_thread(run)).split())


async def test_importing_loads_no_library() -> None:
    modules = ("llm", "llm.open", "llm.scripted", "llm.options")
    assert await loaded("import " + ", ".join(f"sinas_server.backends.{module}" for module in modules)) == set()


async def test_listing_models_loads_no_library(fake: FakeLLM) -> None:
    endpoints = {each: fake.endpoint(each) for each in PROVIDERS}
    asked = [OPEN.format(provider=each, endpoint=at, call="model.list_models()") for each, at in endpoints.items()]
    assert await loaded("\n".join(asked)) == set()
    assert fake.connections == len(PROVIDERS)


@pytest.mark.parametrize(
    ("provider", "libraries"),
    [("openai", {"openai"}), ("ollama", {"openai"}), ("anthropic", {"anthropic"}), ("mistral", {"mistralai"})],
)
async def test_asking_loads_one_library(fake: FakeLLM, provider: Provider, libraries: set[str]) -> None:
    code = OPEN.format(provider=provider, endpoint=fake.endpoint(provider), call="ask()")
    assert await loaded(code) == libraries | {"pydantic_ai"}
    assert len(fake.requests) == 1

"""Opened models are used again while somebody may want them, and closed when too many are idle."""

import pytest

from sinas_server.backends.llm import LanguageModel, ProviderConfig, ProviderError
from sinas_server.backends.llm.open import ModelPool
from sinas_server.backends.render import Renderer
from tests.backends.llm.asking import KEY, ask, collect
from tests.fakes.llm_server import FakeLLM

pytestmark = pytest.mark.usefixtures("drained")


def config(fake: FakeLLM, key: str = KEY, **options: int) -> ProviderConfig:
    return ProviderConfig("openai", key, fake.endpoint("openai"), options)


async def test_the_same_configuration_is_the_same_model(fake: FakeLLM, renderer: Renderer) -> None:
    pool = ModelPool(renderer)
    async with pool.use(config(fake, max_tokens=5, timeout=9)) as one:
        await collect(one, ask())
    async with pool.use(config(fake, timeout=9, max_tokens=5)) as two, pool.use(config(fake, "other")) as three:
        assert two is one
        assert three is not one
        await collect(two, ask())
    assert fake.connections == 1
    await pool.close()


async def test_the_longest_idle_is_closed_and_none_in_use(fake: FakeLLM, renderer: Renderer) -> None:
    pool = ModelPool(renderer, limit=2)
    async with pool.use(config(fake, "held")) as held:
        await collect(held, ask())
        seen: list[LanguageModel] = []
        for key in ("a", "b", "c"):
            async with pool.use(config(fake, key)) as model:
                seen.append(model)
        await collect(held, ask())  # over its first connection: it was not closed
        assert fake.connections == 1
        async with pool.use(config(fake, "c")) as again:
            assert again is seen[2]
        async with pool.use(config(fake, "a")) as again:
            assert again is not seen[0]
    await pool.close()


async def test_a_model_works_again_after_it_was_closed(fake: FakeLLM, renderer: Renderer) -> None:
    pool = ModelPool(renderer)
    async with pool.use(config(fake)) as model:
        await collect(model, ask())
        await model.close()
        await collect(model, ask())
    assert fake.connections == 2
    await pool.close()


async def test_what_cannot_be_opened_is_not_kept(renderer: Renderer) -> None:
    pool = ModelPool(renderer)
    with pytest.raises(ProviderError, match="needs an endpoint"):
        async with pool.use(ProviderConfig("ollama")):
            pass
    async with pool.use(ProviderConfig("scripted")) as model:
        assert await model.list_models() == ["scripted"]
    await pool.close()


async def test_warming_asks_nothing(fake: FakeLLM, renderer: Renderer) -> None:
    pool = ModelPool(renderer)
    await pool.warm(config(fake))
    await pool.warm(ProviderConfig("scripted"))
    assert (fake.requests, fake.connections) == ([], 0)
    async with pool.use(config(fake)) as model:
        await collect(model, ask())
    assert len(fake.requests) == 1
    await pool.close()

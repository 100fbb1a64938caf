"""Embeddings through the official SDK."""

import openai
import pytest
from openai import AsyncOpenAI

from tests.chats.conftest import Declare
from tests.fakes.llm_server import FakeLLM, Provider, Reply
from tests.fakes.llm_wire import vector
from tests.openai_adapter.conftest import Provide
from tests.people import Person


@pytest.mark.parametrize("kind", ["openai", "mistral", "ollama"])
async def test_texts_are_embedded_in_order(
    kind: Provider, provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI, admin: Person
) -> None:
    await provide("main", kind)
    texts = ["one", "two two", "three"]
    found = await admin_sdk.embeddings.create(model="main/embedder", input=texts, dimensions=4)
    assert [item.index for item in found.data] == [0, 1, 2]
    for item, said in zip(found.data, texts, strict=True):
        assert item.embedding == pytest.approx(vector(said, 4)), "the SDK asks for base64"
    plain = await admin_sdk.embeddings.create(model="main/embedder", input="one", encoding_format="float", dimensions=4)
    assert plain.data[0].embedding == pytest.approx(vector("one", 4))
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, texts))
    sent = fake.requests[0].body
    assert sent["model"] == "embedder"
    assert sent["output_dimension" if kind == "mistral" else "dimensions"] == 4
    totals = (await admin.http.get("/api/v1/usage")).json()["totals"]
    assert (totals["calls"], totals["prompt_tokens"]) == (2, sum(map(len, texts)) + 3)


async def test_who_has_none_says_so(declare: Declare, provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await declare("helper")
    await provide("claude", "anthropic")
    for model in ("claude/fake-large", "for-helper/scripted", "agent:default/helper"):
        with pytest.raises(openai.BadRequestError, match="no embeddings"):
            await admin_sdk.embeddings.create(model=model, input="x")
    await provide("main")
    fake.default = Reply(status=429, error="slow down")
    with pytest.raises(openai.RateLimitError, match="slow down"):
        await admin_sdk.embeddings.create(model="main/embedder", input="x")


@pytest.mark.parametrize("given", ["", [], [""], [1, 2], [[1, 2]]])
async def test_what_is_no_text_is_refused(given: object, provide: Provide, admin: Person) -> None:
    await provide("main")
    body = {"model": "main/embedder", "input": given}
    answer = await admin.http.post("/adapters/openai/v1/embeddings", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"].startswith("input")

"""What models are asked is recorded once per call, priced, and shown to whoever may see it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

import pytest
from sqlalchemy import select

from sinas_server.backends.llm import Event, ModelRequest, ProviderConfig, Usage
from sinas_server.chats.ask import ask
from sinas_server.kernel.runtime import Runtime
from sinas_server.openai_adapter import provider_answer
from sinas_server.providers.prices import cost_of
from sinas_server.providers.tables import UsageRow
from tests.chats.conftest import open_chat, working
from tests.chats.test_stop import channel_of, has_text
from tests.fakes.llm_server import Call, FakeLLM, Reply
from tests.people import Person, make_key
from tests.providers.conftest import Ask, Json, Provide

PRICES = {"fake-large": {"input": 2, "output": 10, "cache_read": 1}}
TOLD = Reply(text="Hi.", prompt_tokens=1000, completion_tokens=100, cached_tokens=500)
COST = (500 * 2 + 500 * 1 + 100 * 10) / 1_000_000


async def usage(person: Person, **params: str | list[str]) -> Json:
    answer = await person.http.get("/api/v1/usage", params=params)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def test_a_turn_is_recorded_with_its_price(
    provide: Provide, agent: Ask, fake: FakeLLM, user: Person, admin: Person, runtime: Runtime
) -> None:
    await agent(config={"prices": PRICES})
    fake.default = TOLD
    chat_id = await open_chat(user, "default/payer")
    async with working(runtime):
        answer = (await user.http.post(f"/chats/{chat_id}/messages", json={"content": "Hello"}, timeout=60)).json()
    assert answer["usage"] == {
        "calls": 1,
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "cache_read_tokens": 500,
        "cache_write_tokens": 0,
        "cost_usd": pytest.approx(COST),
        "unpriced_calls": 0,
        "errors": 0,
    }
    found = await usage(admin, group_by=["user", "agent", "chat", "model"])
    (group,) = found["groups"]
    ids = {"user": str(user.id), "agent": "default/payer", "chat": chat_id, "model": "fake-large"}
    assert (group["group"], group["label"]) == (ids, user.email)
    assert found["totals"]["total_tokens"] == group["total_tokens"] == 1100
    assert found["totals"]["cost_usd"] == pytest.approx(COST)


async def test_every_step_counts(agent: Ask, fake: FakeLLM, user: Person, admin: Person, runtime: Runtime) -> None:
    await agent()
    fake.replies = [Reply(text="", tool_calls=[Call(name="none")], prompt_tokens=10, completion_tokens=1), TOLD]
    chat_id = await open_chat(user, "default/payer")
    async with working(runtime):
        answer = (await user.http.post(f"/chats/{chat_id}/messages", json={"content": "Hello"}, timeout=60)).json()
    assert (answer["usage"]["calls"], answer["usage"]["total_tokens"]) == (2, 1111)
    assert (answer["usage"]["cost_usd"], answer["usage"]["unpriced_calls"]) == (None, 2)
    totals = (await usage(admin))["totals"]
    assert (totals["calls"], totals["total_tokens"], totals["cost_usd"], totals["unpriced_calls"]) == (2, 1111, None, 2)


async def test_a_direct_call_is_recorded(
    provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime, user: Person
) -> None:
    await provide("main", config={"prices": {"*": {"input": 1, "output": 1}}})
    fake.default = TOLD
    key = await make_key(runtime, admin.id, "sinas.models.use:all")
    body = {"model": "main/fake-large", "messages": [{"role": "user", "content": "Hi"}]}
    for stream in (False, True):
        answer = await admin.http.post(
            "/adapters/openai/v1/chat/completions",
            json={**body, "stream": stream},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert answer.status_code == 200, answer.text
    found = await usage(admin, group_by="api_key")
    assert (found["totals"]["calls"], found["totals"]["cost_usd"]) == (2, pytest.approx(0.0022))
    assert found["groups"][0]["label"] == "test"
    assert (await usage(user))["totals"]["calls"] == 0, "others see their own"


async def test_a_call_that_fails_is_an_error_and_costs_nothing(
    agent: Ask, fake: FakeLLM, user: Person, admin: Person, runtime: Runtime
) -> None:
    await agent(config={"prices": PRICES})
    fake.default = Reply(status=400)
    chat_id = await open_chat(user, "default/payer")
    async with working(runtime):
        answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "Hello"}, timeout=60)
    assert answer.status_code == 502
    body = {"model": "main/fake-large", "messages": [{"role": "user", "content": "Hi"}]}
    assert (await admin.http.post("/adapters/openai/v1/chat/completions", json=body)).status_code == 400
    totals = (await usage(admin))["totals"]
    assert (totals["calls"], totals["errors"], totals["total_tokens"]) == (0, 2, 0)


async def test_who_stops_an_answer_pays_for_what_was_said(
    agent: Ask, fake: FakeLLM, user: Person, admin: Person, runtime: Runtime
) -> None:
    await agent()
    fake.default = Reply(text="word " * 100, chunks=10, hold_after=8)
    chat_id = await open_chat(user, "default/payer")
    async with working(runtime):
        asking = asyncio.create_task(
            user.http.post(f"/chats/{chat_id}/messages", json={"content": "Hello" * 40}, timeout=60)
        )
        await has_text(runtime, await channel_of(user, chat_id))
        assert (await user.http.post(f"/chats/{chat_id}/stop")).json() == {"status": "stopped", "withdrawn": 0}
        await asking
    totals = (await usage(admin))["totals"]
    assert (totals["calls"], totals["estimated_calls"]) == (1, 1)
    assert totals["prompt_tokens"] >= 50
    assert 10 <= totals["completion_tokens"] <= 125


async def test_who_leaves_a_direct_answer_pays_for_what_was_said(
    provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provide("main")
    fake.default = Reply(text="word " * 100, chunks=10, hold_after=8)
    body = {"model": "main/fake-large", "messages": [{"role": "user", "content": "Hi"}]}
    has_heard = asyncio.Event()

    async def heard(
        runtime: Runtime, config: ProviderConfig, request: ModelRequest
    ) -> AsyncGenerator[list[Event], None]:
        async with aclosing(ask(runtime, config, request)) as groups:
            async for group in groups:
                yield group
                has_heard.set()  # of the group before, now that more is wanted

    monkeypatch.setattr(provider_answer, "ask", heard)
    asking = asyncio.create_task(admin.http.post("/adapters/openai/v1/chat/completions", json=body, timeout=60))
    await has_heard.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    rows = await runtime.database.read(select(UsageRow.estimated, UsageRow.completion_tokens))
    assert [row.estimated for row in rows] == [True]
    assert rows[0].completion_tokens > 0


@pytest.mark.parametrize(
    ("config", "model", "cost"),
    [
        (ProviderConfig("scripted"), "scripted", 0),
        (ProviderConfig("ollama", endpoint="http://x"), "llama3", None),
        (ProviderConfig("openai"), "no-such-model", None),
        (ProviderConfig("openai", endpoint="http://10.0.0.1/v1"), "gpt-4o", None),
        (ProviderConfig("openai", options={"prices": {"*": {"input": 3, "output": 4}}}), "gpt-4o", 7),
    ],
)
def test_prices(config: ProviderConfig, model: str, cost: float | None) -> None:
    found = cost_of(config, model, Usage(1_000_000, 1_000_000))
    assert (found if found is None else float(found)) == cost


@pytest.mark.parametrize(("provider", "model"), [("openai", "gpt-4o"), ("anthropic", "claude-sonnet-4-5")])
def test_public_prices_know_cached_tokens(provider: Literal["openai", "anthropic"], model: str) -> None:
    plain = cost_of(ProviderConfig(provider), model, Usage(1_000_000, 0))
    cached = cost_of(ProviderConfig(provider), model, Usage(1_000_000, 0, cache_read_tokens=1_000_000))
    assert plain is not None and cached is not None
    assert 0 < cached < plain


async def test_prices_are_checked_when_they_are_declared(admin: Person) -> None:
    body = {"name": "main", "provider_type": "openai", "api_key": "x", "config": {"prices": {"m": {"input": -1}}}}
    answer = await admin.http.post("/api/v1/llm-providers", json=body)
    assert answer.status_code == 422
    assert "prices.m.input" in answer.text and "prices.m.output" in answer.text


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"since": "January"}, "since"),
        ({"since": "1969-12-31T00:00:00Z"}, "since"),
        ({"until": "0001-01-01T00:00:00+14:00"}, "until"),
        ({"until": "9999-12-31T23:59:59-14:00"}, "until"),
        ({"since": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ({"group_by": "planet"}, "group_by"),
        ({"user": "x"}, "user"),
    ],
)
async def test_a_bad_query_is_refused(params: Json, field: str, admin: Person) -> None:
    answer = await admin.http.get("/api/v1/usage", params=params)
    assert answer.status_code == 422
    assert field in answer.json()["detail"][0]["loc"]

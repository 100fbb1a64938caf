"""Budgets: refused before the call, by name; exact in PostgreSQL, and never passed by many calls at once."""

import asyncio
import dataclasses
from datetime import timedelta

import httpx2
import pytest
from fastapi import FastAPI
from redis.exceptions import ConnectionError as RedisDown
from sqlalchemy import func, select, update

from sinas_server.chats.tables import TurnRow
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from sinas_server.providers import admit, retention
from sinas_server.providers.budget import BUDGET
from sinas_server.providers.retention import USAGE_LOOP, purge_usage
from sinas_server.providers.tables import BudgetRow, SpendingRow, UsageRow
from tests.chats.conftest import get_chat, open_chat, working
from tests.fakes.llm_server import Call, FakeLLM, Reply
from tests.functions.conftest import port as port_of_functions
from tests.identity.waiting import waits_or_ends
from tests.midnight import keep_clear_of_midnight
from tests.people import Person, make_key, make_person
from tests.providers.conftest import Ask, Json, Provide

port = port_of_functions
TOLD = Reply(text="Hi.", prompt_tokens=60, completion_tokens=40)
ASKED: Json = {"model": "main/fake-large", "messages": [{"role": "user", "content": "Hi"}]}
URL = "/adapters/openai/v1/chat/completions"


@pytest.fixture(autouse=True)
def _one_day() -> None:
    keep_clear_of_midnight()


async def limit(admin: Person, name: str, **fields: object) -> Json:
    body = {"name": name, "applies_to": "user", "period": "day", "max_tokens": 100, **fields}
    answer = await admin.http.post("/api/v1/budgets", json=body)
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    return made


async def quota(person: Person, **params: str) -> list[Json]:
    answer = await person.http.get("/usage/quota", params=params)
    assert answer.status_code == 200, answer.text
    found: list[Json] = answer.json()
    return found


async def test_a_direct_call_is_refused_by_name_before_it(provide: Provide, fake: FakeLLM, admin: Person) -> None:
    await provide("main")
    await limit(admin, "mine", subject=admin.email)
    fake.default = TOLD
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200
    for stream in (False, True):
        answer = await admin.http.post(URL, json={**ASKED, "stream": stream})
        assert answer.status_code == 429
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "budget_exhausted")
        assert "'mine'" in error["message"] and "100 of 100 tokens this day" in error["message"]
        assert 0 < int(answer.headers["retry-after"]) <= 86_401
    assert len(fake.requests) == 1
    (left,) = await quota(admin)
    assert (left["used_tokens"], left["remaining_tokens"], left["max_usd"]) == (100, 0, None)


async def test_a_message_is_refused_before_it_is_stored(
    agent: Ask, fake: FakeLLM, user: Person, admin: Person, runtime: Runtime
) -> None:
    await agent()
    await limit(admin, "bot", applies_to="agent", subject="default/payer")
    fake.default = TOLD
    chat_id = await open_chat(user, "default/payer")
    url = f"/chats/{chat_id}/messages"
    async with working(runtime):
        assert (await user.http.post(url, json={"content": "Hello"}, timeout=60)).status_code == 200
        said = f"{url}/{(await get_chat(user, chat_id))['messages'][0]['id']}"
        for path in (url, f"{url}/stream", f"{said}/regenerate", f"{said}/edit"):
            answer = await user.http.post(path, json={"content": "More"})
            assert (answer.status_code, answer.json()["code"]) == (429, "budget_exhausted")
        invoked = await user.http.post("/agents/default/payer/invoke", json={"message": "More"})
        assert invoked.status_code == 429
    chat = await get_chat(user, chat_id)
    assert (len(chat["messages"]), chat["branch"]) == (2, 0)
    assert await quota(user) == []
    assert [left["name"] for left in await quota(user, agent="default/payer")] == ["bot"]
    assert (await user.http.get("/usage/quota", params={"agent": "default/none"})).status_code == 404


async def test_a_turn_ends_when_the_budget_does(
    agent: Ask, fake: FakeLLM, user: Person, admin: Person, runtime: Runtime
) -> None:
    await agent()
    await limit(admin, "mine", subject=user.email)
    fake.replies = [TOLD.model_copy(update={"tool_calls": [Call(name="none")]}), Reply(text="never")]
    chat_id = await open_chat(user, "default/payer")
    async with working(runtime):
        answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "Hello"}, timeout=60)
    assert answer.status_code == 502
    assert "The budget 'mine' of the user is used up" in answer.json()["detail"]
    assert len(fake.requests) == 1


async def test_keys_roles_and_dollars(provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime) -> None:
    await provide("main", config={"prices": {"*": {"input": 100, "output": 100}}})
    fake.default = TOLD  # a cent
    key = await make_key(runtime, admin.id, "sinas.*:all")
    key_id = (await admin.http.get("/api/v1/api-keys")).json()[0]["id"]
    await limit(admin, "key", applies_to="api_key", subject=key_id, max_tokens=None, max_usd=0.015)
    await limit(admin, "role", applies_to="role", subject="Admins", max_tokens=None, max_usd=0.03, period="total")
    by_key = {"Authorization": f"Bearer {key}"}
    assert [(await admin.http.post(URL, json=ASKED, headers=by_key)).status_code for _ in range(3)] == [200, 200, 429]
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200, "the key's budget is the key's"
    refused = await admin.http.post(URL, json=ASKED)
    assert (refused.status_code, "'role' of the role" in refused.text) == (429, True)
    (left,) = await quota(admin)
    assert (left["used_usd"], left["remaining_usd"], left["resets_at"]) == (pytest.approx(0.03), 0, None)


async def test_each_user_of_a_role_apart(
    provide: Provide, fake: FakeLLM, admin: Person, app: FastAPI, runtime: Runtime
) -> None:
    await provide("main")
    await limit(admin, "each", applies_to="role", subject="Admins", each_user=True)
    other = await make_person(runtime, app, ["Admins"])
    fake.default = TOLD
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200
    assert (await admin.http.post(URL, json=ASKED)).status_code == 429
    assert (await other.http.post(URL, json=ASKED)).status_code == 200
    assert (await quota(other))[0]["used_tokens"] == 100
    await other.http.aclose()


async def test_a_new_budget_knows_what_was_spent(provide: Provide, fake: FakeLLM, admin: Person) -> None:
    await provide("main")
    fake.default = TOLD
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200
    await limit(admin, "mine", subject=admin.email, max_tokens=150)
    assert (await quota(admin))[0]["used_tokens"] == 100
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200
    assert (await admin.http.post(URL, json=ASKED)).status_code == 429
    for change in ({"max_tokens": 1000}, {"period": "month"}, {"applies_to": "role", "subject": "Admins"}):
        assert (await admin.http.patch("/api/v1/budgets/mine", json=change)).status_code == 200
        assert (await quota(admin))[0]["used_tokens"] == 200
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200
    assert (await admin.http.patch("/api/v1/budgets/mine", json={"max_tokens": 1})).status_code == 200
    assert (await admin.http.post(URL, json=ASKED)).status_code == 429
    assert (await admin.http.patch("/api/v1/budgets/mine", json={"is_active": False})).status_code == 200
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200
    assert (await admin.http.patch("/api/v1/budgets/mine", json={"is_active": True})).status_code == 200
    assert (await quota(admin))[0]["used_tokens"] == 400
    assert (await admin.http.delete("/api/v1/budgets/mine")).status_code == 204
    assert await quota(admin) == []


async def test_calls_that_are_forgotten_count_in_budgets_that_never_begin_anew(
    provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provide("main", config={"prices": {"*": {"input": 100, "output": 100}}})
    fake.default = TOLD  # a cent
    by_key = {"Authorization": f"Bearer {await make_key(runtime, admin.id, 'sinas.*:all')}"}
    key_id = (await admin.http.get("/api/v1/api-keys")).json()[0]["id"]
    for headers in ({}, {}, by_key, by_key):
        assert (await admin.http.post(URL, json=ASKED, headers=headers)).status_code == 200
    rows = await runtime.database.rows(select(UsageRow.id).order_by(UsageRow.id))
    aged = update(UsageRow).where(UsageRow.id.in_([row.id for row in rows[:3]]))
    await runtime.database.rows(aged.values(at=func.now() - timedelta(days=399, hours=23)))
    await purge_usage(runtime)
    await runtime.database.rows(aged.values(at=func.now() - timedelta(days=400, hours=1)))
    forever = runtime.settings.model_copy(update={"usage_retention_days": 0})
    await purge_usage(dataclasses.replace(runtime, settings=forever))
    assert len(await runtime.database.rows(select(UsageRow.id))) == 4
    monkeypatch.setattr(retention, "AT_ONCE", 2)  # the three take two statements
    await purge_usage(runtime)
    assert [row.id for row in await runtime.database.rows(select(UsageRow.id))] == [rows[3].id]
    assert (await admin.http.get("/api/v1/usage")).json()["totals"]["calls"] == 1
    for name, fields in {
        "a": {"subject": admin.email, "period": "total"},
        "b": {"applies_to": "api_key", "subject": key_id, "period": "total"},
        "c": {"applies_to": "role", "subject": "Admins", "period": "total", "each_user": True},
        "d": {"subject": admin.email, "period": "month"},
    }.items():
        await limit(admin, name, **fields)
    await USAGE_LOOP.step(runtime)
    counted = await runtime.database.rows(
        select(BudgetRow.name, SpendingRow.tokens, SpendingRow.cost_usd)
        .join(SpendingRow, SpendingRow.budget_id == BudgetRow.id)
        .order_by(BudgetRow.name)
    )
    assert [(row.name, row.tokens, float(row.cost_usd)) for row in counted] == [
        *[("a", 400, 0.04), ("b", 200, 0.02), ("c", 400, 0.04), ("d", 100, 0.01)]
    ]


async def test_two_calls_at_the_limit(provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime) -> None:
    """While one call is running, what it will take is held; once it is over, what it took counts."""
    await provide("main")
    await limit(admin, "mine", subject=admin.email)
    fake.default = TOLD.model_copy(update={"hold_after": 1})
    first = asyncio.create_task(admin.http.post(URL, json=ASKED, timeout=60))
    while not (fake.requests and fake.requests[0].held):
        await asyncio.sleep(0.02)
    second = await admin.http.post(URL, json=ASKED)
    assert (second.status_code, second.headers["retry-after"]) == (429, "2")
    assert "held by calls that are running now" in second.json()["error"]["message"]
    fake.release()
    assert (await first).status_code == 200
    third = await admin.http.post(URL, json=ASKED)
    assert (third.status_code, "used up" in third.text) == (429, True)
    assert await runtime.redis.keys("sinas:budget:*") == [], "nothing stays held"


async def test_what_a_stream_holds_is_given_back_when_its_reader_leaves(
    provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_back = admit._give_back

    async def slowly(*given: object) -> None:
        await asyncio.sleep(0.05)  # as over a connection that has to be made; who has left is canceled at every wait
        await give_back(*given)  # type: ignore[arg-type]  # what it is given

    monkeypatch.setattr(admit, "_give_back", slowly)
    await provide("main")
    await limit(admin, "mine", subject=admin.email, max_tokens=1000)
    fake.default = Reply(text="word " * 100, chunks=10, hold_after=8)
    headers = {"Authorization": f"Bearer {admin.token}"}
    async with (
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, verify=False) as client,
        client.stream("POST", URL, json={**ASKED, "stream": True}) as answer,
    ):
        async for line in answer.aiter_lines():
            if "word" in line:
                break
    async with asyncio.timeout(30):
        while not (spent := await runtime.database.read(select(UsageRow.estimated, UsageRow.completion_tokens))):
            await asyncio.sleep(0.02)
        while await runtime.redis.keys("sinas:budget:*"):
            await asyncio.sleep(0.02)
    assert spent[0].estimated
    assert spent[0].completion_tokens > 0


async def test_nothing_stays_held_by_who_is_stopped_just_then(
    provide: Provide, admin: Person, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provide("main")
    await limit(admin, "mine", subject=admin.email)
    evaluate, is_held = runtime.redis.eval, asyncio.Event()

    async def without_answer(*arguments: str) -> None:
        await evaluate(*arguments)  # type: ignore[arg-type]  # of a script, its keys and arguments
        is_held.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(runtime.redis, "eval", without_answer)
    asking = asyncio.create_task(admin.http.post(URL, json=ASKED))
    await is_held.wait()
    assert len(await runtime.redis.keys("sinas:budget:*")) == 1
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await runtime.redis.keys("sinas:budget:*") == []


async def test_a_turn_waits_for_what_is_only_held(agent: Ask, fake: FakeLLM, admin: Person, runtime: Runtime) -> None:
    await agent()
    await limit(admin, "mine", subject=admin.email, max_tokens=400)
    fake.default = TOLD
    fake.replies = [TOLD.model_copy(update={"hold_after": 1})]
    chat_id = await open_chat(admin, "default/payer")
    first = asyncio.create_task(admin.http.post(URL, json=ASKED, timeout=60))
    while not (fake.requests and fake.requests[0].held):
        await asyncio.sleep(0.02)
    async with working(runtime):
        url = f"/chats/{chat_id}/messages"
        turn = asyncio.create_task(admin.http.post(url, json={"content": "Hello"}, timeout=60))
        while not await runtime.database.read(select(TurnRow.id).where(TurnRow.status == "RUNNING")):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert len(fake.requests) == 1
        fake.release()
        assert (await first).status_code == 200
        assert (await turn).json()["content"] == "Hi."


async def test_many_calls_at_once_are_counted_exactly(
    provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime
) -> None:
    await provide("main")
    await limit(admin, "mine", subject=admin.email, max_tokens=10**9)
    await limit(admin, "all", applies_to="role", subject="Admins", max_tokens=10**9)
    fake.default = TOLD
    answers = await asyncio.gather(*(admin.http.post(URL, json=ASKED, timeout=60) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    rows = await runtime.database.read(select(SpendingRow.tokens))
    assert [row.tokens for row in rows] == [2000, 2000]


async def test_a_call_is_recorded_while_its_budget_is_being_deleted(
    provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime
) -> None:
    await provide("main")
    await limit(admin, "mine", subject=admin.email)
    fake.default = TOLD
    async with runtime.database.unit() as db:
        await store.delete(db, SYSTEM, BUDGET, "", "mine")
        asking = asyncio.create_task(admin.http.post(URL, json=ASKED, timeout=60))
        await waits_or_ends(runtime, asking)
    answer = await asking
    assert answer.status_code == 200, answer.text
    assert len(await runtime.database.read(select(UsageRow.id))) == 1
    assert await quota(admin) == []


async def test_without_redis_what_was_spent_still_counts(
    provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provide("main")
    await limit(admin, "mine", subject=admin.email)
    fake.default = TOLD

    async def down(*_: object) -> None:
        raise RedisDown("gone")

    monkeypatch.setattr(runtime.redis, "eval", down)
    assert (await admin.http.post(URL, json=ASKED)).status_code == 200
    assert (await admin.http.post(URL, json=ASKED)).status_code == 429


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"subject": "nobody@example.com"}, "subject"),
        ({"applies_to": "role", "subject": "Nobody"}, "subject"),
        ({"applies_to": "api_key", "subject": "x"}, "subject"),
        ({"subject": "admin@example.com", "max_tokens": -1}, "max_tokens"),
    ],
)
async def test_what_cannot_be_is_refused(fields: Json, place: str, admin: Person, runtime: Runtime) -> None:
    body = {"name": "mine", "applies_to": "user", "period": "day", "max_tokens": 100, **fields}
    answer = await admin.http.post("/api/v1/budgets", json=body)
    assert answer.status_code == 422, answer.text
    assert any(place in problem["loc"] for problem in answer.json()["detail"])
    assert not await runtime.database.read(select(BudgetRow.id))


async def test_an_agent_with_a_budget_must_exist(agent: Ask, admin: Person) -> None:
    missing = {"name": "bot", "applies_to": "agent", "subject": "default/none", "max_tokens": 1}
    assert (await admin.http.post("/api/v1/budgets", json=missing)).status_code in (400, 409, 422)
    await agent()
    await limit(admin, "bot", applies_to="agent", subject="default/payer")
    assert (await admin.http.delete("/api/v1/agents/default/payer")).status_code == 409

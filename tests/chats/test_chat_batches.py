"""Batches of chats: many messages for an agent with one request, followed and cancelled together."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest
from sqlalchemy import Executable, event, func, select

from sinas_server.backends.db.direct import DirectReader
from sinas_server.chats import chat_batches
from sinas_server.chats.chat_batches import CHAT_BATCH_LOOP
from sinas_server.chats.stop import SETTLE_LOOP
from sinas_server.chats.tables import ChatRow, TurnRow
from sinas_server.functions.batches import BATCH_LOOP
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import BatchRow
from tests.chats.conftest import (
    CountingTools,
    Declare,
    Json,
    get_chat,
    open_chat,
    reread,
    stream,
    text_of,
    working,
)
from tests.functions.receiver import receiving
from tests.functions.test_options import delivered
from tests.functions.test_options import settings as settings_with_callbacks
from tests.people import Person

settings = settings_with_callbacks
RULES: list[Json] = [
    {"when": {"contains": "danger"}, "call": [{"tool": "shop/danger"}]},
    {"when": {"contains": "one"}, "answer": "the first"},
    {"when": {"contains": "two"}, "answer": "the second"},
]


async def _ask(person: Person, agent: str, inputs: list[Json], **more: object) -> Json:
    answer = await person.http.post(f"/agents/{agent}/chats/batch", json={"inputs": inputs, **more}, timeout=60)
    assert answer.status_code == 202, answer.text
    return cast(Json, answer.json())


async def _get(person: Person, batch_id: str, path: str = "") -> Json:
    answer = await person.http.get(f"/batches/{batch_id}{path}")
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())


async def _ended(runtime: Runtime, person: Person, batch_id: str) -> Json:
    async with asyncio.timeout(60):
        while True:
            await CHAT_BATCH_LOOP.step(runtime)
            shown = await _get(person, batch_id)
            if shown["status"] not in ("queued", "running"):
                return shown
            await asyncio.sleep(0.05)


async def test_each_input_is_answered_in_a_chat_of_its_own(runtime: Runtime, user: Person, declare: Declare) -> None:
    agent = await declare("many", rules=RULES, default="something else")
    inputs: list[Json] = [{"message": "one"}, {"message": "two"}, {"message": [{"type": "text", "text": "three"}]}]
    batch = await _ask(user, agent, inputs, trigger_id_prefix="row", execution_mode="provider")
    assert (batch["total"], batch["status"]) == (3, "queued")
    assert (await _get(user, batch["batch_id"]))["status"] == "queued"
    async with working(runtime):
        shown = await _ended(runtime, user, batch["batch_id"])
    assert [shown[key] for key in ("status", "total", "completed", "failed", "cancelled")] == ["completed", 3, 3, 0, 0]
    said = [(await get_chat(user, chat_id))["messages"][-1]["content"] for chat_id in batch["chat_ids"]]
    assert said == ["the first", "the second", "something else"]
    members = (await _get(user, batch["batch_id"], "/executions"))["executions"]
    assert [one["chat_id"] for one in members] == batch["chat_ids"]
    assert [one["execution_id"] for one in members] == batch["execution_ids"]
    assert [(one["status"], one["trigger_id"]) for one in members] == [("COMPLETED", f"row-{n}") for n in range(3)]


async def test_one_that_needs_approval_fails(
    runtime: Runtime, user: Person, declare: Declare, tools: CountingTools
) -> None:
    agent = await declare("careful", rules=RULES, enabled_functions=["shop/danger"])
    batch = await _ask(user, agent, [{"message": "one"}, {"message": "danger"}])
    async with working(runtime):
        shown = await _ended(runtime, user, batch["batch_id"])
    assert (shown["status"], shown["completed"], shown["failed"]) == ("partial", 1, 1)
    failed = (await _get(user, batch["batch_id"], "/executions?status=failed"))["executions"]
    assert [(one["chat_id"], one["error"]) for one in failed] == [(batch["chat_ids"][1], chat_batches.NOBODY)]
    assert tools.ran == []
    assert (await get_chat(user, batch["chat_ids"][1]))["pending_approvals"] == []


async def test_what_has_not_ended_is_cancelled(runtime: Runtime, user: Person, declare: Declare) -> None:
    batch = await _ask(user, await declare("many"), [{"message": "one"}, {"message": "two"}])
    answer = await user.http.post(f"/batches/{batch['batch_id']}/cancel")
    assert (answer.status_code, answer.json()["status"], answer.json()["cancelled"]) == (200, "cancelled", 2)
    await SETTLE_LOOP.step(runtime)
    for chat_id in batch["chat_ids"]:
        chat = await get_chat(user, chat_id)
        assert (chat["last_turn"]["status"], chat["active_channel_id"]) == ("CANCELLED", None)
        last = (await reread(user, chat_id, chat["last_turn"]["channel_id"]))[-1]
        assert (last.name, last.data["status"]) == ("done", "cancelled")


@pytest.fixture
def statements(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the database is asked from now on."""
    asked = list[str]()
    fetch = DirectReader.fetch

    async def counted(reader: DirectReader, statement: Executable, parameters: dict[str, object]) -> Sequence[object]:
        asked.append(str(statement))
        return await fetch(reader, statement, parameters)

    monkeypatch.setattr(DirectReader, "fetch", counted)
    event.listen(runtime.database.engine.sync_engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    return asked


async def test_beginning_and_cancelling_take_as_many_statements_however_many_chats_there_are(
    runtime: Runtime, user: Person, declare: Declare, statements: list[str]
) -> None:
    agent, begun, taken = await declare("many", rules=RULES), [], []
    for total in (2, 2, 40):  # the first looks up what is remembered from then on
        statements.clear()
        batch = await _ask(user, agent, [{"message": "one"}] * total)
        begun.append(len(statements))
        statements.clear()
        assert (await user.http.post(f"/batches/{batch['batch_id']}/cancel")).json()["cancelled"] == total
        for loop in (SETTLE_LOOP, CHAT_BATCH_LOOP, BATCH_LOOP):
            await loop.step(runtime)
        taken.append(len(statements))
        assert (await _get(user, batch["batch_id"]))["status"] == "cancelled"
    assert 0 < begun[2] <= begun[1], begun
    assert 0 < taken[2] <= taken[1], taken


async def test_what_runs_stops_when_it_is_cancelled(runtime: Runtime, user: Person, declare: Declare) -> None:
    agent = await declare("slow", default="x" * 4000, delay_ms=1000)
    batch = await _ask(user, agent, [{"message": "one"}])
    async with working(runtime), asyncio.timeout(60):
        while (await _get(user, batch["batch_id"]))["running"] != 1:
            await asyncio.sleep(0.05)
        assert (await user.http.post(f"/batches/{batch['batch_id']}/cancel")).status_code == 200
        while (await get_chat(user, batch["chat_ids"][0]))["active_channel_id"] is not None:
            await asyncio.sleep(0.05)
    assert (await _get(user, batch["batch_id"]))["status"] == "cancelled"


async def test_a_deleted_chat_counts_as_cancelled(user: Person, declare: Declare) -> None:
    batch = await _ask(user, await declare("many"), [{"message": "one"}])
    assert (await user.http.delete(f"/chats/{batch['chat_ids'][0]}")).status_code == 204
    shown = await _get(user, batch["batch_id"])
    assert (shown["status"], shown["total"], shown["cancelled"]) == ("cancelled", 1, 1)
    members = (await _get(user, batch["batch_id"], "/executions"))["executions"]
    assert members[0]["error"] == "the chat was deleted"


async def test_what_has_ended_stays_so_without_its_chat(runtime: Runtime, user: Person, declare: Declare) -> None:
    batch = await _ask(user, await declare("many"), [{"message": "one"}])
    async with working(runtime):
        await _ended(runtime, user, batch["batch_id"])
    await CHAT_BATCH_LOOP.step(runtime)
    assert (await user.http.delete(f"/chats/{batch['chat_ids'][0]}")).status_code == 204
    assert (await _get(user, batch["batch_id"]))["status"] == "completed"


async def test_ends_are_posted(runtime: Runtime, user: Person, declare: Declare) -> None:
    agent = await declare("many", rules=RULES)
    async with receiving() as receiver, working(runtime):
        urls = {"callback_url": receiver.url, "batch_callback_url": receiver.url}
        batch = await _ask(user, agent, [{"message": "one"}], trigger_id_prefix="row", **urls)
        await _ended(runtime, user, batch["batch_id"])
        for _ in range(2):  # the second time there is nothing more to tell
            await CHAT_BATCH_LOOP.step(runtime)
            await BATCH_LOOP.step(runtime)
        bodies = await delivered(runtime, receiver, 2)
    told = {message["type"]: message["data"] for message in bodies}
    assert len(bodies) == 2
    one = told["execution.completed"]
    assert (one["chat_id"], one["output_data"], one["trigger_id"]) == (batch["chat_ids"][0], "the first", "row-0")
    assert (one["agent"], one["batch_id"], one["batch_index"]) == (agent, batch["batch_id"], 0)
    assert told["batch.completed"]["batch_id"] == batch["batch_id"]


@pytest.mark.parametrize(
    ("body", "status", "where"),
    [
        ({"inputs": [{"message": "x"}] * 1001}, 400, None),
        ({"inputs": []}, 422, ["body", "inputs"]),
        ({"inputs": [{"message": "x", "input_variables": {"n": 1}}, {"message": ""}]}, 422, None),
        (
            {
                "inputs": [
                    {"message": "x", "input_variables": {"n": 1}},
                    {"message": "x", "input_variables": {"n": "1"}},
                ]
            },
            422,
            ["body", "inputs", 1, "input_variables", "n"],
        ),
        ({"inputs": [{"message": "x"}], "callback_url": "http://elsewhere.example/"}, 422, ["body", "callback_url"]),
    ],
)
async def test_a_bad_request_begins_nothing(
    runtime: Runtime, user: Person, declare: Declare, body: Json, status: int, where: list[object] | None
) -> None:
    schema: Json = {"type": "object", "properties": {"n": {"type": "integer"}}}
    agent = await declare("typed", input_schema=schema)
    answer = await user.http.post(f"/agents/{agent}/chats/batch", json=body)
    assert answer.status_code == status, answer.text
    if where is not None:
        assert answer.json()["detail"][0]["loc"] == where
    for table in (ChatRow, TurnRow, BatchRow):
        assert (await runtime.database.rows(select(func.count()).select_from(table)))[0][0] == 0


async def test_a_batch_is_its_owners(user: Person, guest: Person, admin: Person, declare: Declare) -> None:
    agent = await declare("many")
    assert (await guest.http.post(f"/agents/{agent}/chats/batch", json={"inputs": [{"message": "x"}]})).status_code in (
        403,
        404,
    )
    batch = await _ask(user, agent, [{"message": "one"}])
    assert (await guest.http.get(f"/batches/{batch['batch_id']}")).status_code == 403
    assert (await guest.http.post(f"/batches/{batch['batch_id']}/cancel")).status_code == 403
    assert (await admin.http.get(f"/batches/{batch['batch_id']}")).json()["total"] == 1


async def test_who_waits_for_an_answer_does_not_wait_for_a_batch(
    runtime: Runtime, user: Person, admin: Person, declare: Declare
) -> None:
    agent = await declare("many")
    first = await _ask(user, agent, [{"message": "one"}] * 20)
    chats = [await open_chat(admin, agent) for _ in range(10)]
    asked = [asyncio.create_task(stream(admin, chat_id, "hello")) for chat_id in chats]
    open_turns = select(func.count()).select_from(TurnRow).where(TurnRow.status == "PENDING")
    async with asyncio.timeout(60):
        while (await runtime.database.rows(open_turns))[0][0] < 30:
            await asyncio.sleep(0.01)
    async with working(runtime, slots=1):
        await asyncio.gather(*asked)
        await _ended(runtime, user, first["batch_id"])
    order = select(TurnRow.user_id == admin.id).order_by(TurnRow.finished_at)
    is_asked = [row[0] for row in await runtime.database.rows(order)]
    until = max(place for place, asked_for in enumerate(is_asked) if asked_for) + 1
    assert 10 <= until <= 10 * 4 / 3 + 2, "interactive turns come first"
    assert not all(is_asked[:10]), "and a batch does not starve"


async def test_a_batch_is_cancelled_at_once_with_what_is_queued_in_its_chats(
    runtime: Runtime, user: Person, declare: Declare
) -> None:
    batch = await _ask(user, await declare("many", rules=RULES), [{"message": "one"}] * 3)
    chat_id = batch["chat_ids"][1]
    second = asyncio.create_task(stream(user, chat_id, "two"))
    async with asyncio.timeout(60):
        while not (await get_chat(user, chat_id))["queued"]:
            await asyncio.sleep(0.01)
    assert (await user.http.post(f"/batches/{batch['batch_id']}/cancel")).json()["cancelled"] == 3
    shown = await _get(user, batch["batch_id"])
    assert (shown["status"], shown["cancelled"]) == ("cancelled", 3)
    for other in (batch["chat_ids"][0], batch["chat_ids"][2]):
        assert (await get_chat(user, other))["active_channel_id"] is None
    async with working(runtime):
        assert text_of(await second) == "the second"
    await CHAT_BATCH_LOOP.step(runtime)
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    assert (await _get(user, batch["batch_id"]))["cancelled"] == 3

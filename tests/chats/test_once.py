"""`Idempotency-Key`: a message sent again is not said again."""

import asyncio
from datetime import timedelta

from sqlalchemy import func, select, update

from sinas_server.chats.expiry import EXPIRY_LOOP
from sinas_server.chats.tables import ChatRow, TurnKeyRow, TurnRow
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Declare, get_chat, open_chat, parse, text_of
from tests.people import Person

KEY = {"Idempotency-Key": "once"}


async def _count(runtime: Runtime, table: type[TurnRow | ChatRow | TurnKeyRow]) -> int:
    return int((await runtime.database.rows(select(func.count()).select_from(table)))[0][0])


async def test_a_message_sent_again_gives_the_same_turn(user: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    path = f"/chats/{chat_id}/messages"
    first, second = [await user.http.post(path, json={"content": "Hi"}, headers=KEY, timeout=60) for _ in range(2)]
    assert (first.status_code, second.json()) == (200, first.json())
    streamed = await user.http.post(f"{path}/stream", json={"content": "Hi"}, headers=KEY, timeout=60)
    assert streamed.headers["x-channel-id"] == first.json()["channel_id"]
    assert text_of(parse(streamed.text)) == first.json()["content"]
    assert [message["role"] for message in (await get_chat(user, chat_id))["messages"]] == ["user", "assistant"]
    other = await user.http.post(path, json={"content": "Ho"}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_used")


async def test_many_at_once_start_one(user: Person, declare: Declare, runtime: Runtime, worker: None) -> None:
    agent = await declare("plain")
    chat_id = await open_chat(user, agent)
    path = f"/chats/{chat_id}/messages"
    sent = [user.http.post(path, json={"content": "Hi"}, headers=KEY, timeout=60) for _ in range(8)]
    answers = await asyncio.gather(*sent)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert await _count(runtime, TurnRow) == 1
    headers = {"Idempotency-Key": "another"}
    asked = [user.http.post(f"/agents/{agent}/invoke", json={"message": "Hi"}, headers=headers) for _ in range(8)]
    invoked = await asyncio.gather(*asked)
    assert {answer.status_code for answer in invoked} == {200}
    assert len({answer.json()["chat_id"] for answer in invoked}) == 1
    assert (await _count(runtime, TurnRow), await _count(runtime, ChatRow)) == (2, 2)
    other = await user.http.post(f"/agents/{agent}/invoke", json={"message": "Ho"}, headers=headers)
    assert other.status_code == 409


async def test_a_key_is_its_users(
    user: Person, admin: Person, declare: Declare, runtime: Runtime, worker: None
) -> None:
    agent = await declare("plain")
    for person in (user, admin):
        answer = await person.http.post(f"/agents/{agent}/invoke", json={"message": "Hi"}, headers=KEY, timeout=60)
        assert answer.status_code == 200
    assert await _count(runtime, ChatRow) == 2


async def test_what_was_refused_keeps_no_key(user: Person, declare: Declare, runtime: Runtime) -> None:
    agent = await declare("typed", input_schema={"type": "object", "required": ["company"]})
    answer = await user.http.post(f"/agents/{agent}/invoke", json={"message": "Hi"}, headers=KEY)
    assert answer.status_code == 422
    assert await _count(runtime, TurnKeyRow) == 0
    for wrong in ("", "x" * 256):
        answer = await user.http.post(
            f"/agents/{agent}/invoke", json={"message": "Hi"}, headers={"Idempotency-Key": wrong}
        )
        assert answer.status_code == 422


async def test_a_key_is_forgotten_after_a_day(user: Person, declare: Declare, runtime: Runtime, worker: None) -> None:
    agent = await declare("plain")
    for text in ("Hi", "Ho"):
        answer = await user.http.post(f"/agents/{agent}/invoke", json={"message": text}, headers=KEY, timeout=60)
        assert answer.status_code == 200, answer.text
        async with runtime.database.unit() as db:
            await db.execute(update(TurnKeyRow).values(created_at=func.now() - timedelta(hours=25)))
    await EXPIRY_LOOP.step(runtime)
    assert await _count(runtime, TurnKeyRow) == 0

"""Asking in one request, with and without a session."""

from sqlalchemy import select

from sinas_server.chats.tables import ChatRow
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Declare, Json, get_chat
from tests.people import Person


async def test_a_session_is_one_conversation_until_it_is_reset(user: Person, declare: Declare, worker: None) -> None:
    path = f"/agents/{await declare('plain')}/invoke"
    single = (await user.http.post(path, json={"message": "Hi"})).json()
    assert (single["reply"], single["session_key"], single["status"]) == ("Hello, I am the agent.", None, "completed")
    assert single["usage"]["calls"] == 1
    assert single["pending_inputs"] == []
    first = (await user.http.post(path, json={"message": "Hi", "session_key": "slack:1"})).json()
    second = (await user.http.post(path, json={"message": "Hi", "session_key": "slack:1"})).json()
    assert first["chat_id"] == second["chat_id"] != single["chat_id"]
    assert len((await get_chat(user, first["chat_id"]))["messages"]) == 4
    third = (await user.http.post(path, json={"message": "Hi", "session_key": "slack:1", "reset": True})).json()
    assert third["chat_id"] != first["chat_id"]
    assert (await get_chat(user, first["chat_id"]))["archived"] is True
    again = await user.http.put(f"/chats/{first['chat_id']}", json={"archived": False})
    assert again.status_code == 409


async def test_input_counts_where_the_session_begins(
    user: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    agent = await declare("shop", system_prompt="For {{ shop }}", input_schema={"required": ["shop"]})
    for shop, reset in (("a", False), ("b", False), ("c", True)):
        body = {"message": "Hi", "session_key": "k", "input": {"shop": shop}, "reset": reset}
        answer = await user.http.post(f"/agents/{agent}/invoke", json=body)
        assert answer.status_code == 200, answer.text
    rows = await runtime.database.rows(select(ChatRow.input).order_by(ChatRow.created_at))
    assert [row.input for row in rows] == [{"shop": "a"}, {"shop": "c"}]


async def test_a_session_of_somebody_else_is_refused(
    user: Person, admin: Person, declare: Declare, worker: None
) -> None:
    path = f"/agents/{await declare('plain')}/invoke"
    assert (await user.http.post(path, json={"message": "Hi", "session_key": "x"})).status_code == 200
    assert (await admin.http.post(path, json={"message": "Hi", "session_key": "x"})).status_code == 403


async def test_bad_requests_are_refused(user: Person, guest: Person, declare: Declare) -> None:
    agent = await declare("typed", input_schema={"type": "object", "required": ["n"]})
    path = f"/agents/{agent}/invoke"
    bad: list[Json] = [{}, {"message": ""}, {"message": []}, {"message": 1}, {"message": "x"}]
    for body in (*bad, {"message": "x", "input": 1}):
        assert (await user.http.post(path, json=body)).status_code == 422, body
    assert (await guest.http.post(path, json={"message": "x"})).status_code == 403

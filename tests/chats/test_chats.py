"""Chats as resources: creating, listing, changing and deleting them, and who may."""

from datetime import timedelta
from uuid import uuid4

import httpx2
from fastapi import FastAPI
from sqlalchemy import func, select, update

from sinas_server.chats.expiry import EXPIRY_LOOP
from sinas_server.chats.tables import ChatRow
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import Declare, Json, get_chat, open_chat, stream
from tests.people import Person, http_client, make_key

SCHEMA = {
    "type": "object",
    "properties": {"company": {"type": "string"}, "tone": {"type": "string", "default": "friendly"}},
    "required": ["company"],
}


async def test_a_chat_has_every_field_clients_read(user: Person, declare: Declare) -> None:
    agent = await declare("plain")
    made = await user.http.post(f"/agents/{agent}/chats", json={})
    assert made.status_code == 200
    chat = made.json()
    assert chat["title"] == "Chat with default/plain"
    assert (chat["agent_namespace"], chat["agent_name"]) == ("default", "plain")
    assert (chat["user_id"], chat["user_email"]) == (str(user.id), user.email)
    assert chat["archived"] is False
    for field in ("session_key", "expires_at", "active_channel_id", "last_message_at"):
        assert chat[field] is None
    shown = await get_chat(user, chat["id"])
    assert shown == {**chat, "messages": [], "pending_approvals": [], "queued": [], "last_turn": None}
    assert (await user.http.get(f"/chats/{chat['id']}/messages")).json() == []


async def test_the_input_must_meet_the_schema(user: Person, declare: Declare, worker: None) -> None:
    prompt = "{{ company }} is {{ tone }}"
    agent = await declare("typed", input_schema=SCHEMA, system_prompt=prompt)
    bad: list[Json] = [{}, {"input": {"company": 1}}, {"input": []}, {"title": "x" * 501}, {"expires_in": 0}]
    for given in bad:
        assert (await user.http.post(f"/agents/{agent}/chats", json=given)).status_code == 422
    wrong = await user.http.post(f"/agents/{agent}/chats", json={"input": {"company": 1}})
    assert wrong.json()["detail"][0]["loc"] == ["body", "input", "company"]
    chat_id = await open_chat(user, agent, input={"company": "Us"}, title="Mine")
    assert (await stream(user, chat_id, "go"))[-1].name == "done"


async def test_lists_are_paged_by_cursor(user: Person, admin: Person, declare: Declare) -> None:
    agent = await declare("plain")
    ids = [await open_chat(user, agent, title=f"Chat 100% {n}") for n in range(5)]
    await open_chat(admin, agent)
    everything = await user.http.get("/chats")
    assert [chat["id"] for chat in everything.json()] == ids[::-1]
    assert "x-next-cursor" not in everything.headers
    assert "x-truncated" not in everything.headers
    seen: list[str] = []
    params: dict[str, str] = {"limit": "2"}
    cursors = set()
    while True:
        page = await user.http.get("/chats", params=params)
        seen += [chat["id"] for chat in page.json()]
        cursor = page.headers.get("x-next-cursor")
        if cursor is None:
            break
        assert cursor not in cursors
        cursors.add(cursor)
        params["cursor"] = cursor
    assert seen == ids[::-1]
    found = await user.http.get("/chats", params={"q": "100% 3"})
    assert [chat["id"] for chat in found.json()] == [ids[3]]
    assert (await user.http.get("/chats", params={"q": "100_"})).json() == []
    for wrong in ({"limit": "0"}, {"limit": "201"}, {"cursor": "nonsense"}, {"cursor": "MSAy"}):
        assert (await user.http.get("/chats", params=wrong)).status_code == 422


async def test_chats_are_renamed_archived_and_deleted(user: Person, declare: Declare) -> None:
    agent = await declare("plain")
    chat_id, other = [await open_chat(user, agent) for _ in range(2)]
    renamed = await user.http.put(f"/chats/{chat_id}", json={"title": "Better", "archived": None, "more": 1})
    assert (renamed.status_code, renamed.json()["title"]) == (200, "Better")
    assert (await user.http.put(f"/chats/{chat_id}", json={"title": ""})).status_code == 422
    assert [chat["id"] for chat in (await user.http.get("/chats")).json()] == [chat_id, other]
    await user.http.put(f"/chats/{chat_id}", json={"archived": True})
    assert [chat["id"] for chat in (await user.http.get("/chats")).json()] == [other]
    both = await user.http.get("/chats", params={"include_archived": "true"})
    assert {chat["id"] for chat in both.json()} == {chat_id, other}
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    assert (await user.http.get(f"/chats/{chat_id}")).status_code == 404


async def test_expired_chats_are_gone(user: Person, declare: Declare, runtime: Runtime) -> None:
    agent = await declare("plain")
    kept, expired = await open_chat(user, agent, expires_in=60), await open_chat(user, agent, expires_in=60)
    async with runtime.database.unit() as db:
        past = func.now() - timedelta(seconds=1)
        await db.execute(update(ChatRow).where(ChatRow.id == expired).values(expires_at=past))
    assert (await user.http.get(f"/chats/{expired}")).status_code == 404
    assert [chat["id"] for chat in (await user.http.get("/chats")).json()] == [kept]
    await EXPIRY_LOOP.step(runtime)
    assert [str(row.id) for row in await runtime.database.rows(select(ChatRow.id))] == [kept]


async def test_other_peoples_chats_do_not_exist(user: Person, guest: Person, admin: Person, declare: Declare) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "", {"title": "x"}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"content": "x"}),
        ("POST", "/messages/stream", {"content": "x"}),
        ("GET", f"/stream/{uuid4()}", None),
        ("POST", "/approve-tool/x", {"approved": True}),
        ("POST", "/stop", None),
    ):
        answer = await guest.http.request(method, f"/chats/{chat_id}{path}", json=body)
        assert answer.status_code == 404, path
    assert (await admin.http.get(f"/chats/{chat_id}")).status_code == 200
    assert (await admin.http.post(f"/chats/{chat_id}/messages", json={"content": "x"})).status_code == 404
    for chat in ("nonsense", str(uuid4())):
        assert (await user.http.get(f"/chats/{chat}")).status_code in (404, 422)
    assert (await user.http.get(f"/chats/{chat_id}/stream/{uuid4()}")).status_code == 404
    assert (await guest.http.post("/agents/default/plain/chats", json={})).status_code == 403
    assert (await user.http.post("/agents/default/nothing/chats", json={})).status_code == 404


def with_key(app: FastAPI, key: str) -> httpx2.AsyncClient:
    return http_client(app, {"X-API-Key": key})


async def test_a_key_that_may_chat_sees_its_conversation(
    user: Person, declare: Declare, worker: None, runtime: Runtime, app: FastAPI
) -> None:
    agent = await declare("plain")
    chatting = await make_key(runtime, user.id, "sinas.agents/default/plain.chat:all")
    nothing = await make_key(runtime, user.id)
    async with with_key(app, chatting) as client:
        chat_id = (await client.post(f"/agents/{agent}/chats", json={})).json()["id"]
        assert (await client.post(f"/chats/{chat_id}/messages", json={"content": "go"})).status_code == 200
        assert len((await client.get(f"/chats/{chat_id}")).json()["messages"]) == 2
        assert (await client.delete(f"/chats/{chat_id}")).status_code == 403
        assert (await client.get("/chats")).status_code == 403
    async with with_key(app, nothing) as client:
        assert (await client.get(f"/chats/{chat_id}")).status_code == 403
        assert (await client.post(f"/chats/{chat_id}/messages", json={"content": "go"})).status_code == 403


async def test_a_chat_outlives_its_agent_but_talks_no_more(
    user: Person, admin: Person, declare: Declare, worker: None
) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    await stream(user, chat_id, "go")
    assert (await admin.http.delete("/api/v1/agents/default/plain")).status_code == 204
    assert len((await get_chat(user, chat_id))["messages"]) == 2
    gone = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "go"})
    assert gone.status_code == 404
    assert "default/plain" in gone.json()["detail"]

"""The messages of all chats that one may read: searching and counting them."""

from datetime import timedelta
from uuid import UUID

import pytest
from fastapi import FastAPI
from sqlalchemy import func, insert, update

from sinas_server.chats import messages
from sinas_server.chats.tables import ChatRow, MessageRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from tests.chats.conftest import Declare, Json, open_chat, stream
from tests.midnight import keep_clear_of_midnight
from tests.people import Person, http_client, make_key


async def _search(person: Person, **params: str) -> Json:
    answer = await person.http.get("/api/v1/messages", params=params)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def _say(runtime: Runtime, chat_id: str, *texts: str, **more: object) -> None:
    async with runtime.database.unit() as db:
        for content in texts:
            values = {"chat_id": UUID(chat_id), "role": "user", "content": content, **more}
            await db.execute(insert(MessageRow).values(values))


def _texts(found: Json) -> list[str]:
    return [message["content"] for message in found["messages"]]


async def test_messages_say_where_they_were_said(user: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await declare("plain"), title="Mine")
    await stream(user, chat_id, "Good morning")
    found = await _search(user)
    assert (found["total"], found["limit"], found["offset"]) == (2, 50, 0)
    answer, said = found["messages"]
    assert (answer["role"], said["role"], said["content"]) == ("assistant", "user", "Good morning")
    assert said["chat"] == {"id": chat_id, "title": "Mine", "agent_namespace": "default", "agent_name": "plain"}
    assert said["user"] == {"id": str(user.id), "email": user.email}
    of_chat = (await user.http.get(f"/chats/{chat_id}/messages")).json()
    for row, message in zip(found["messages"], of_chat[::-1], strict=True):
        shared = row.keys() - {"chat", "user"}
        assert {key: row[key] for key in shared} == {key: message[key] for key in shared}


async def test_one_sees_what_one_may_read(
    user: Person, admin: Person, guest: Person, declare: Declare, runtime: Runtime, app: FastAPI
) -> None:
    agent = await declare("plain")
    await _say(runtime, await open_chat(user, agent), "of the user")
    await _say(runtime, await open_chat(admin, agent), "of the administrator")
    assert _texts(await _search(user)) == ["of the user"]
    assert _texts(await _search(admin)) == ["of the administrator", "of the user"]
    assert (await guest.http.get("/api/v1/messages")).status_code == 403
    assert (await guest.http.get("/api/v1/messages/stats")).status_code == 403
    key = await make_key(runtime, admin.id, "sinas.chats.read:own")
    async with http_client(app, {"X-API-Key": key}) as narrow:
        mine = (await narrow.get("/api/v1/messages")).json()
        assert _texts(mine) == ["of the administrator"]
        assert (await narrow.get("/api/v1/messages/stats")).json()["total_messages"] == 1


async def test_messages_are_filtered_searched_and_paged(user: Person, declare: Declare, runtime: Runtime) -> None:
    first, other = [await open_chat(user, await declare(name)) for name in ("plain", "other")]
    await _say(runtime, first, "100% sure", "100 percent", r"a\b")
    await _say(runtime, other, "An ÄPFEL pie")
    await _say(runtime, other, "its result: 100%", role="tool")
    parts = [{"type": "text", "text": "What is this äpfel?"}, {"type": "image", "image": "data:image/png;base64,cGll"}]
    await _say(runtime, other, None, parts=parts)  # type: ignore[arg-type]  # multimodal content has no text of its own
    assert _texts(await _search(user, search="100%")) == ["its result: 100%", "100% sure"]
    assert _texts(await _search(user, search="100%", role="user")) == ["100% sure"]
    assert _texts(await _search(user, search="1_0")) == []
    assert _texts(await _search(user, search=r"A\B")) == [r"a\b"]
    assert (await _search(user, search="äpfel"))["total"] == 2
    assert (await _search(user, search="cGll"))["total"] == 0
    assert _texts(await _search(user, agent="default/other", role="tool")) == ["its result: 100%"]
    assert (await _search(user, agent="plain", role=""))["total"] == 3
    assert (await _search(user, agent="elsewhere/plain"))["total"] == 0
    page = await _search(user, agent="plain", limit="2", offset="1")
    assert (_texts(page), page["total"]) == (["100 percent", "100% sure"], 3)
    for wrong in ({"limit": "0"}, {"limit": "1001"}, {"offset": "-1"}, {"role": "nobody"}, {"search": "x" * 501}):
        answer = await user.http.get("/api/v1/messages", params=wrong)
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["query", next(iter(wrong))])


async def test_what_is_expired_or_deleted_is_not_found(user: Person, declare: Declare, runtime: Runtime) -> None:
    agent = await declare("plain")
    expired, deleted = await open_chat(user, agent, expires_in=60), await open_chat(user, agent)
    await _say(runtime, expired, "expired")
    await _say(runtime, deleted, "deleted")
    async with runtime.database.unit() as db:
        past = func.now() - timedelta(seconds=1)
        await db.execute(update(ChatRow).where(ChatRow.id == expired).values(expires_at=past))
    assert (await user.http.delete(f"/chats/{deleted}")).status_code == 204
    assert (await _search(user))["total"] == 0
    assert (await user.http.get("/api/v1/messages/stats")).json()["total_messages"] == 0


async def test_a_search_looks_at_the_newest_only(
    user: Person, declare: Declare, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _say(runtime, await open_chat(user, await declare("plain")), "one", "two", "three", "four")
    everything = await user.http.get("/api/v1/messages")
    assert "x-truncated" not in everything.headers
    monkeypatch.setattr(messages, "REACH", 2)
    newest = await user.http.get("/api/v1/messages", params={"search": "o"})
    assert (_texts(newest.json()), newest.headers["x-truncated"]) == (["four"], "true")


async def test_what_takes_too_long_is_refused(
    user: Person, declare: Declare, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    await _say(runtime, chat_id, *["x" * 200_000] * 30)
    monkeypatch.setattr(messages, "PATIENCE", func.set_config("statement_timeout", "1", True).select())
    answer = await user.http.get("/api/v1/messages", params={"search": "xxxxxxxxy"})
    assert (answer.status_code, answer.json()["detail"]) == (400, messages.TOO_SLOW)


async def test_stats_count_by_day_agent_and_role(user: Person, declare: Declare, runtime: Runtime) -> None:
    first, other = [await open_chat(user, await declare(name)) for name in ("plain", "other")]
    keep_clear_of_midnight()
    await _say(runtime, first, "today", "today")
    await _say(runtime, other, "called", role="assistant", tool_calls=[{"id": "1"}, {"id": "2"}])
    await _say(runtime, other, "two days ago", created_at=now() - timedelta(days=2))
    await _say(runtime, other, "long ago", created_at=now() - timedelta(days=30))
    today = now().date()
    days = [(today - timedelta(days=days)).isoformat() for days in (2, 1, 0)]
    answer = await user.http.get("/api/v1/messages/stats", params={"days": "3"})
    assert answer.json() == {
        "total_messages": 4,
        "tool_calls": 2,
        "activity_by_day": {days[0]: 1, days[1]: 0, days[2]: 3},
        "agent_usage": [{"agent": "default/other", "count": 2}, {"agent": "default/plain", "count": 2}],
        "role_distribution": {"user": 3, "assistant": 1},
    }
    week = (await user.http.get("/api/v1/messages/stats")).json()
    assert (len(week["activity_by_day"]), week["total_messages"]) == (7, 4)
    assert (await user.http.get("/api/v1/messages/stats", params={"days": "90"})).json()["total_messages"] == 5
    for wrong in ("0", "91", "x"):
        assert (await user.http.get("/api/v1/messages/stats", params={"days": wrong})).status_code == 422

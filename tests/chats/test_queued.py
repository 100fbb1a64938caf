"""Messages that are sent while a turn runs: queued, refused, and withdrawn."""

import asyncio

import pytest
from sqlalchemy import text

from sinas_server.chats.stop import SETTLE_LOOP
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.chats.busy import an_agent, calling, in_a_call, queued, said, unworked, waiting
from tests.chats.conftest import (
    CountingTools,
    Declare,
    get_chat,
    joined,
    open_chat,
    reread,
    stream,
    text_of,
    working,
)
from tests.people import Person


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With room for a few messages only."""
    return settings.model_copy(update={"max_queued_messages": 4})


async def test_they_are_answered_one_after_the_other_in_their_order(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    chat_id, first = await unworked(user, await an_agent(declare))
    sent = [first, await waiting(user, chat_id, "second", 1), await waiting(user, chat_id, "third", 2)]
    chat = await get_chat(user, chat_id)
    assert said(chat) == [("user", "first")]
    assert [(one["content"], one["status"]) for one in chat["queued"]] == [("second", "queued"), ("third", "queued")]
    assert chat["last_turn"]["status"] == "PENDING"
    ids = [one["id"] for one in chat["queued"]]
    async with working(runtime):
        answers = [text_of(events) for events in await asyncio.gather(*sent)]
    assert answers == ["First answer.", "Second answer.", "Third answer."]
    chat = await get_chat(user, chat_id)
    assert said(chat) == [
        *[("user", "first"), ("assistant", "First answer.")],
        *[("user", "second"), ("assistant", "Second answer.")],
        *[("user", "third"), ("assistant", "Third answer.")],
    ]
    assert [chat["messages"][2]["id"], chat["messages"][4]["id"]] == ids
    assert (chat["queued"], chat["active_channel_id"], chat["last_turn"]["status"]) == ([], None, "COMPLETED")


async def test_a_second_one_waits_for_its_answer_without_a_stream(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    tools.hold = asyncio.Event()
    agent = await an_agent(declare)
    first = asyncio.create_task(
        user.http.post(f"/agents/{agent}/invoke", json={"message": "look", "session_key": "k"}, timeout=60)
    )
    await in_a_call(tools)
    [chat] = (await user.http.get("/chats")).json()
    sent = [
        asyncio.create_task(user.http.post(path, json=body, headers=headers, timeout=60))
        for path, body, headers in (
            (f"/agents/{agent}/invoke", {"message": "second", "session_key": "k"}, {}),
            (f"/chats/{chat['id']}/messages", {"content": "third"}, {"Idempotency-Key": "k"}),
            (f"/chats/{chat['id']}/messages", {"content": "third"}, {"Idempotency-Key": "k"}),
            (
                "/adapters/openai/v1/chat/completions",
                {"model": f"agent:{agent}", "messages": [{"role": "user", "content": "first"}]},
                {"X-Chat-ID": chat["id"]},
            ),
        )
    ]
    await queued(user, chat["id"], 3)
    tools.let_go()
    looked, invoked, *keyed, adapted = [answer.json() for answer in await asyncio.gather(first, *sent)]
    assert (looked["reply"], invoked["reply"], invoked["chat_id"]) == ("Seen.", "Second answer.", chat["id"])
    assert [answer["content"] for answer in keyed] == ["Third answer."] * 2
    assert keyed[0]["id"] == keyed[1]["id"]
    assert adapted["choices"][0]["message"]["content"] == "First answer."
    assert {answer["status"] for answer in (looked, invoked, *keyed)} == {"completed"}


async def test_it_can_be_followed_before_it_begins(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    sent = await waiting(user, chat_id, "second", 1)
    [waits] = await queued(user, chat_id, 1)
    late = asyncio.create_task(reread(user, chat_id, waits["channel_id"]))
    tools.let_go()
    assert joined(await late) == joined(await sent)
    assert text_of(await late) == "Second answer."
    await first


async def test_a_stop_is_for_the_turn_that_runs(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    sent = await waiting(user, chat_id, "second", 1)
    stopped = await user.http.post(f"/chats/{chat_id}/stop")
    assert stopped.json() == {"status": "stopped", "withdrawn": 0}
    assert (await first)[-1].data["status"] == "cancelled"
    assert text_of(await sent) == "Second answer."
    roles = [role for role, _ in said(await get_chat(user, chat_id))]
    assert roles == ["user", "assistant", "tool", "user", "assistant"]


async def test_a_stop_may_withdraw_what_is_queued(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    sent = [await waiting(user, chat_id, content, n) for n, content in enumerate(("second", "third"), 1)]
    stopped = await user.http.post(f"/chats/{chat_id}/stop", params={"withdraw": True})
    assert stopped.json() == {"status": "stopped", "withdrawn": 2}
    for events in await asyncio.gather(first, *sent):
        assert events[-1].data == {"type": "done", "status": "cancelled"}
    chat = await get_chat(user, chat_id)
    assert [role for role, _ in said(chat)] == ["user", "assistant", "tool"]
    assert (chat["queued"], chat["active_channel_id"]) == ([], None)


async def test_one_is_withdrawn_and_the_others_are_answered(
    user: Person, guest: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    asked = asyncio.create_task(user.http.post(f"/chats/{chat_id}/messages", json={"content": "second"}, timeout=60))
    await queued(user, chat_id, 1)
    third = await waiting(user, chat_id, "third", 2)
    ids = [one["id"] for one in await queued(user, chat_id, 2)]
    where = f"/chats/{chat_id}/queued"
    assert (await guest.http.delete(f"{where}/{ids[0]}")).status_code == 404
    assert (await user.http.delete(f"{where}/{ids[0]}")).status_code == 204
    assert (await user.http.delete(f"{where}/{ids[0]}")).status_code == 404
    told = await asked
    assert (told.status_code, "withdrawn" in told.json()["detail"]) == (409, True)
    assert (await get_chat(user, chat_id))["last_turn"]["status"] == "RUNNING"
    tools.let_go()
    assert text_of(await third) == "Third answer."
    await first
    assert (await user.http.delete(f"{where}/{ids[1]}")).status_code == 409
    assert ("user", "second") not in said(await get_chat(user, chat_id))


async def test_too_many_are_refused(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id = await open_chat(user, await an_agent(declare))
    most = runtime.settings.max_queued_messages
    sent = [asyncio.create_task(stream(user, chat_id, f"first {n}")) for n in range(most + 1)]
    await queued(user, chat_id, most)
    refused = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "one more"})
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    async with working(runtime):
        assert {text_of(events) for events in await asyncio.gather(*sent)} == {"First answer."}
    assert len(said(await get_chat(user, chat_id))) == 2 * (most + 1)


async def test_it_is_refused_if_so_asked(user: Person, declare: Declare, tools: CountingTools, worker: None) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools, when_busy="reject")
    busy = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "and?", "when_busy": "reject"})
    assert (busy.status_code, "stop" in busy.json()["detail"]) == (409, True)
    unknown = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "and?", "when_busy": "shout"})
    assert unknown.status_code == 422
    tools.let_go()
    assert text_of(await first) == "Seen."


async def test_what_is_queued_waits_for_the_users_decision(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id, first = await unworked(user, await an_agent(declare), "danger")
    second = await waiting(user, chat_id, "second", 1)
    async with working(runtime):
        [call] = [event.data["tool_call_id"] for event in await first if event.name == "approval_required"]
        chat = await get_chat(user, chat_id)
        assert (chat["last_turn"]["status"], len(chat["queued"])) == ("SUSPENDED", 1)
        decided = await user.http.post(f"/chats/{chat_id}/approve-tool/{call}", json={"approved": True})
        assert text_of(await reread(user, chat_id, decided.json()["channel_id"])) == "Done."
        assert text_of(await second) == "Second answer."


async def test_a_message_in_place_of_a_decision_comes_after_what_was_queued(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    chat_id, first = await unworked(user, await an_agent(declare), "danger")
    second = await waiting(user, chat_id, "second", 1)
    async with working(runtime):
        await first
        assert text_of(await stream(user, chat_id, "third")) == "Third answer."
        assert text_of(await second) == "Second answer."
    assert [content for role, content in said(await get_chat(user, chat_id)) if role == "user"] == [
        "danger",
        "second",
        "third",
    ]


async def test_deleting_the_chat_ends_them(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id, first = await unworked(user, await an_agent(declare))
    sent = [first, await waiting(user, chat_id, "second", 1)]
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    for events in await asyncio.gather(*sent):
        assert events[-1].data == {"type": "error", "error": "the chat was deleted"}


async def test_what_is_queued_begins_when_a_lost_workers_turn_is_settled(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    chat_id, first = await unworked(user, await an_agent(declare))
    await runtime.database.rows(text("UPDATE turns SET status = 'CANCELLED', attempt = 1"))
    second = await waiting(user, chat_id, "second", 1)
    await SETTLE_LOOP.step(runtime)
    assert (await first)[-1].data["status"] == "cancelled"
    async with working(runtime):
        assert text_of(await second) == "Second answer."


async def test_an_administrator_cancels_a_queued_one_as_a_job(
    user: Person, admin: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id, first = await calling(user, await an_agent(declare), tools)
    second = await waiting(user, chat_id, "second", 1)
    [waits] = await queued(user, chat_id, 1)
    jobs = (await admin.http.get("/api/v1/queue/jobs", params={"status": "queued"})).json()
    assert [job["job_id"] for job in jobs] == [waits["turn_id"]]
    assert (await admin.http.post(f"/api/v1/queue/jobs/{waits['turn_id']}/cancel")).status_code == 200
    assert (await second)[-1].data["status"] == "cancelled"
    tools.let_go()
    assert text_of(await first) == "Seen."

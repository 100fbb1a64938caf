"""Retrying, and what becomes of a turn that is under way or waits when its user goes another way."""

import asyncio

from sinas_server.backends.llm import Answer, ProviderError, TextDelta, ToolCall
from sinas_server.kernel.runtime import Runtime
from tests.chats.conftest import CountingTools, Declare, get_chat, open_chat, parse, stream, text_of, working
from tests.chats.test_approval import FUNCTIONS, RULES
from tests.chats.test_branches import Counting, branches, choose, contents, on_branch, post, say, told
from tests.chats.test_failures import Model, with_model
from tests.chats.test_stop import LONG, channel_of, has_text
from tests.people import Person

LOOK = ToolCall("c1", "shop__look", '{"n": "1"}')


async def test_what_failed_is_tried_again_where_it_stopped(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    model = Model([Answer("", (LOOK,))], [ProviderError("it is broken")], [ProviderError("still")], [Answer("Seen.")])
    chat_id = await open_chat(user, await declare("plain", enabled_functions=["shop/look"]))
    async with working(with_model(runtime, model)):
        assert (await post(user, f"/chats/{chat_id}/messages", 502, content="look"))["detail"] == "it is broken"
        assert (await post(user, f"/chats/{chat_id}/retry", 502))["detail"] == "still"
        answer = await post(user, f"/chats/{chat_id}/retry")
    assert (answer["content"], len(tools.ran)) == ("Seen.", 1)
    chat = await get_chat(user, chat_id)
    assert [message["role"] for message in chat["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert [told(message) for message in model.requests[-1].messages] == ["look", "", contents(chat["messages"])[2]]
    assert (chat["last_turn"]["status"], len(await branches(user, chat_id))) == ("COMPLETED", 1)
    refused = await post(user, f"/chats/{chat_id}/retry", 409)
    assert "regenerate" in refused["detail"]


async def test_what_failed_before_anything_was_said_needs_no_branch(
    user: Person, declare: Declare, runtime: Runtime
) -> None:
    model = Model(
        [ProviderError("no")], [ProviderError("no")], [Answer("Yes.")], [ProviderError("no")], [Answer("Ok.")]
    )
    chat_id = await open_chat(user, await declare("plain"))
    async with working(with_model(runtime, model)):
        await post(user, f"/chats/{chat_id}/messages", 502, content="Hi")
        said = (await on_branch(user, chat_id))[0]["id"]
        await post(user, f"/chats/{chat_id}/messages/{said}/regenerate", 502)
        assert (await post(user, f"/chats/{chat_id}/messages/{said}/regenerate"))["branch"] == 0
        await post(user, f"/chats/{chat_id}/messages/{said}/regenerate", 502)
        chat = await get_chat(user, chat_id)
        assert (contents(chat["messages"]), chat["branch"], chat["last_turn"]["status"]) == (["Hi"], 1, "FAILED")
        [_, empty] = await branches(user, chat_id)
        assert (empty["first_message_id"], empty["last_message_id"]) == (None, said)
        assert (await post(user, f"/chats/{chat_id}/retry"))["branch"] == 1
    now = await on_branch(user, chat_id)
    assert (contents(now), len(now[1]["sibling_ids"]), len(await branches(user, chat_id))) == (["Hi", "Ok."], 2, 2)


async def test_what_was_stopped_stays_beside_the_new_answer(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    agent = await declare("slow", default=LONG, delay_ms=30)
    chat_id = await open_chat(user, agent)
    async with working(runtime):
        streaming = asyncio.create_task(stream(user, chat_id, "go"))
        await has_text(runtime, await channel_of(user, chat_id))
        await user.http.post(f"/chats/{chat_id}/stop")
        await streaming
    cut = (await on_branch(user, chat_id))[1]
    async with working(with_model(runtime, Model([TextDelta("Short."), Answer("Short.")]))):
        answer = await user.http.post(f"/chats/{chat_id}/retry/stream", timeout=60)
    events = parse(answer.text)
    assert (text_of(events), events[-1].data["status"]) == ("Short.", "completed")
    assert answer.headers["x-chat-id"] == chat_id
    now = await on_branch(user, chat_id)
    assert (contents(now), now[1]["sibling_ids"]) == (["go", "Short."], [cut["id"], now[1]["id"]])
    assert contents(await on_branch(user, chat_id, 0)) == ["go", cut["content"]]


async def test_a_call_that_was_stopped_is_told_so_and_its_neighbour_is_not_run_again(
    user: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    calls = (ToolCall("c1", "shop__look", "{}"), ToolCall("c2", "shop__danger", "{}"))
    model = Model([Answer("", calls)], [Answer("Then not.")])
    chat_id = await open_chat(user, await declare("plain", enabled_functions=FUNCTIONS))
    async with working(with_model(runtime, model)):
        await stream(user, chat_id, "go")
        await user.http.post(f"/chats/{chat_id}/stop")
        assert (await post(user, f"/chats/{chat_id}/retry"))["content"] == "Then not."
    assert [call.index for call in tools.ran] == [0]
    heard = [told(message) for message in model.requests[-1].messages]
    assert heard == ["go", "", '{"tool": "shop/look", "got": {}}', "Not carried out: the user stopped the agent."]


async def test_while_a_turn_runs_nothing_begins_and_nothing_changes(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id = await open_chat(
        user, await declare("looker", [{"call": [{"tool": "shop/look"}]}], enabled_functions=["shop/look"])
    )
    tools.hold = asyncio.Event()
    streaming = asyncio.create_task(stream(user, chat_id, "go"))
    while not tools.ran:
        await asyncio.sleep(0.01)
    said = (await on_branch(user, chat_id))[0]["id"]
    paths = [f"messages/{said}/regenerate", f"messages/{said}/regenerate/stream", f"messages/{said}/edit"]
    for path in [*paths, f"messages/{said}/edit/stream"]:
        assert "stop" in (await post(user, f"/chats/{chat_id}/{path}", 409, content="x"))["detail"]
    for path in ("retry", "retry/stream"):
        assert "still answering" in (await post(user, f"/chats/{chat_id}/{path}", 409))["detail"]
    assert [branch["branch"] for branch in await branches(user, chat_id)] == [0]
    await user.http.post(f"/chats/{chat_id}/stop")
    tools.hold.set()
    await streaming


async def test_what_waited_for_the_user_is_settled_when_he_goes_another_way(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id = await open_chat(user, await declare("careful", RULES, enabled_functions=FUNCTIONS))
    await stream(user, chat_id, "hello")
    events = await stream(user, chat_id, "do it")
    waiting = next(event.data["tool_call_id"] for event in events if event.name == "approval_required")
    messages = await on_branch(user, chat_id)
    assert (await post(user, f"/chats/{chat_id}/messages/{messages[0]['id']}/regenerate"))["branch"] == 1
    assert (await get_chat(user, chat_id))["pending_approvals"] == []
    assert (await user.http.get("/approvals")).json() == []
    late = await user.http.post(f"/chats/{chat_id}/approve-tool/{waiting}", json={"approved": True})
    assert late.status_code == 404
    left = await on_branch(user, chat_id, 0)
    results = [message["content"] for message in left if message["role"] == "tool"]
    assert results[0] == results[2] == "Not carried out: this waited for the user, who went on with something else."
    assert [call.index for call in tools.ran] == [1]


async def test_a_branch_with_something_waiting_is_not_left_silently(
    user: Person, declare: Declare, worker: None, tools: CountingTools
) -> None:
    chat_id = await open_chat(user, await declare("careful", RULES, enabled_functions=FUNCTIONS))
    await stream(user, chat_id, "hello")
    said = (await on_branch(user, chat_id))[0]["id"]
    await stream(user, chat_id, "again")
    answer = await user.http.post(
        f"/chats/{chat_id}/messages/{said}/edit/stream", json={"content": "do it"}, timeout=60
    )
    assert parse(answer.text)[-1].data["status"] == "suspended"
    assert "stop" in (await choose(user, chat_id, 409, branch=0))["detail"]
    assert (await choose(user, chat_id, branch=1))["branch"] == 1
    assert len((await get_chat(user, chat_id))["pending_approvals"]) == 2
    await user.http.post(f"/chats/{chat_id}/stop")
    assert (await choose(user, chat_id, branch=0))["branch"] == 0
    assert len((await get_chat(user, chat_id))["messages"]) == 4


async def test_a_key_begins_one_branch(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    model = Counting()
    async with working(with_model(runtime, model)):
        await say(user, chat_id, "one")
        said = (await on_branch(user, chat_id))[0]["id"]
        path = f"/chats/{chat_id}/messages/{said}"
        key = {"Idempotency-Key": "once"}
        sent = [user.http.post(f"{path}/regenerate", json={}, headers=key, timeout=60) for _ in range(5)]
        answers = await asyncio.gather(*sent)
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["id"] for answer in answers}) == 1
        streamed = await user.http.post(f"{path}/regenerate/stream", headers=key, timeout=60)
        assert text_of(parse(streamed.text)) == "A2"
        other = await user.http.post(f"{path}/edit", json={"content": "two"}, headers=key)
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_used")
    assert (len(model.requests), len(await branches(user, chat_id))) == (2, 2)

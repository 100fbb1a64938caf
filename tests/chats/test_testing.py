"""Chats under test: models are asked once and their answers said again, whatever the conversation goes through."""

import dataclasses
from typing import cast

import pytest
from sqlalchemy import func, select

from sinas_server.backends.llm import Answer, ProviderError, TextDelta, ToolCall, Usage
from sinas_server.chats import testing, testing_routes
from sinas_server.chats.delegate import AgentTools
from sinas_server.chats.tables import ChatRow
from sinas_server.chats.testing_tables import RecordedRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.providers.tables import UsageRow
from tests.chats.conftest import CountingTools, Declare, Event, Json, get_chat, stream, text_of, working
from tests.chats.test_failures import Model, with_model
from tests.people import Person

LOOK = ToolCall("call_0", "shop__look", '{"n": 1}')


async def begin(person: Person, agent: str, **body: object) -> str:
    """A new chat to test in."""
    made = await person.http.post(f"/agents/{agent}/test-chats", json=body)
    assert made.status_code == 200, made.text
    return cast(str, made.json()["id"])


async def recorded(person: Person, chat_id: str) -> list[Json]:
    """What was recorded in a chat."""
    answer = await person.http.get(f"/chats/{chat_id}/recording")
    assert answer.status_code == 200, answer.text
    return cast(list[Json], answer.json()["exchanges"])


async def replayed(person: Person, runtime: Runtime, agent: str, exchanges: list[Json], *said: str) -> list[Event]:
    """What is heard last when this is said, with no model to ask."""
    chat_id = await begin(person, agent, mode="replay", exchanges=exchanges)
    async with working(with_model(runtime, Model())):
        return [await stream(person, chat_id, text) for text in said][-1]


async def test_a_turn_with_tools_is_recorded_and_replayed(
    admin: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    agent = await declare("plain", enabled_functions=["shop/look"])
    usage = Usage(prompt_tokens=20, completion_tokens=5)
    model = Model(
        [Answer("Let me see.", (LOOK, LOOK), usage=usage)], [TextDelta("It is "), Answer("It is 1.", usage=usage)]
    )
    chat_id = await begin(admin, agent, mode="record")
    async with working(with_model(runtime, model)):
        live = await stream(admin, chat_id, "go")
    exchanges = await recorded(admin, chat_id)
    assert [each["said"]["text"] for each in exchanges] == ["Let me see.", "It is 1."]
    assert exchanges[1]["asked"]["messages"][-1] == {
        "role": "tool",
        "name": "shop__look",
        "result": {"tool": "shop/look", "got": {"n": 1}},
    }
    before = (await runtime.database.read(select(func.count()).select_from(UsageRow)))[0][0]
    heard = await replayed(admin, runtime, agent, exchanges, "go")
    assert text_of(heard) == text_of(live) == "It is 1."
    assert [event.name for event in heard if event.name != "message"] == [e.name for e in live if e.name != "message"]
    assert len(tools.ran) == 4  # tools are really called, unless they are stubbed
    after = (await runtime.database.read(select(func.count()).select_from(UsageRow)))[0][0]
    assert after == before  # nobody was asked


async def test_usage_of_a_replay_is_that_of_the_recording(admin: Person, declare: Declare, runtime: Runtime) -> None:
    agent = await declare("plain")
    chat_id = await begin(admin, agent, mode="record")
    usage = Usage(prompt_tokens=20, completion_tokens=5)
    async with working(with_model(runtime, Model([Answer("Hi", usage=usage)]))):
        await stream(admin, chat_id, "go")
    again = await begin(admin, agent, mode="replay", exchanges=await recorded(admin, chat_id))
    async with working(with_model(runtime, Model())):
        await stream(admin, again, "go")
    assert (await get_chat(admin, again))["last_turn"]["usage"]["total_tokens"] == 25


async def test_a_difference_says_what_changed(admin: Person, declare: Declare, runtime: Runtime) -> None:
    agent = await declare("plain", enabled_functions=["shop/look"], system_prompt="Be brief.")
    chat_id = await begin(admin, agent, mode="record")
    async with working(with_model(runtime, Model([Answer("Hi")], [Answer("Ho")]))):
        await stream(admin, chat_id, "go")
        await stream(admin, chat_id, "on")
    exchanges = await recorded(admin, chat_id)
    changes = {"system_prompt": "Be very brief.", "temperature": 0.1, "enabled_functions": ["shop/look", "shop/buy"]}
    assert (await admin.http.put("/api/v1/agents/default/plain", json=changes)).status_code == 200
    (*_, error) = await replayed(admin, runtime, agent, exchanges, "go")
    assert error.name == "error"
    lines = error.data["error"].split("\n")
    assert lines[0] == "the recording has no answer to what the model is asked now:"
    assert 'messages[0].text: "Be brief." → "Be very brief."' in lines
    assert "settings.temperature: 0.7 → 0.1" in lines
    assert any(line.startswith("tools.shop__buy: is new") for line in lines)
    assert len(lines) == 4
    # and no fall-back takes a missing recording for a provider that fails
    (*_, empty) = await replayed(admin, runtime, agent, [], "go")
    assert empty.data["error"].endswith("the recording is empty")


async def test_fall_back_providers_and_agents_that_are_called(
    admin: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    """A provider fails, another one calls an agent, whose chat has other ids each time."""
    runtime = with_toolsets(runtime, tools)
    await declare("helper", enabled_functions=["shop/look"])
    await declare("spare")
    agent = await declare(
        "boss", enabled_agents=["default/helper"], fallback_providers=[{"provider": "for-spare", "model": "b"}]
    )
    call = ToolCall("c", "call_agent_default__helper", '{"message": "look"}')
    model = Model(
        [ProviderError("openai answered 400: no", status=400)],
        [Answer("", (call,))],
        [Answer("", (LOOK,))],
        [Answer("It is 1.")],
        [ProviderError("openai answered 400: no", status=400)],
        [Answer("The helper says 1.")],
    )
    chat_id = await begin(admin, agent, mode="record")
    async with working(with_model(runtime, model)):
        live = await stream(admin, chat_id, "go")
    assert text_of(live) == "The helper says 1."
    assert model.answers == []
    exchanges = await recorded(admin, chat_id)
    assert [bool(each["said"]["error"]) for each in exchanges].count(True) == 2
    assert "<id 1>" in str(exchanges[-1]["asked"]["messages"])  # the chat of the called agent
    heard = await replayed(admin, runtime, agent, exchanges, "go")
    assert text_of(heard) == "The helper says 1."


def with_toolsets(runtime: Runtime, tools: CountingTools) -> Runtime:
    """Agents can be called, and the tools that count."""
    return dataclasses.replace(runtime, toolsets=(tools, AgentTools()))


async def test_stubbed_tools_are_not_called(
    admin: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    agent = await declare("plain", enabled_functions=["shop/look"])
    stubs = [
        {"tool": "shop/look", "arguments": {"n": 2}, "error": "it is broken"},
        {"tool": "shop__look", "arguments": {"n": 1}, "result": {"price": 7}},
    ]
    chat_id = await begin(admin, agent, stubs=stubs)
    other = ToolCall("b", "shop__look", '{"n": 2, "x": 1}')
    real = ToolCall("c", "shop__look", "{}")
    async with working(with_model(runtime, Model([Answer("", (LOOK, other, real))], [Answer("Ok")]))):
        heard = await stream(admin, chat_id, "go")
    results = {event.data["tool_call_id"]: event.data["result"] for event in heard if event.name == "tool_end"}
    assert results["call_0"] == '{"price":7}'
    assert results["b"] == "Error: it is broken"
    assert len(tools.ran) == 1


@pytest.mark.parametrize(("name", "status"), [("test_of", 404), ("keep", 200)])
async def test_a_chat_that_is_deleted_while_it_is_judged(
    name: str, status: int, admin: Person, declare: Declare, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = getattr(testing, name)

    async def deleted_before(*given: object) -> object:
        answer = await admin.http.delete(f"/chats/{chat_id}")
        assert answer.status_code == 204, answer.text
        return await step(*given)

    agent = await declare("plain")
    await declare("judge", default='{"passed": true, "reason": "It is."}')
    chat_id = await begin(admin, agent, mode="record")
    monkeypatch.setattr(testing_routes if name == "test_of" else testing, name, deleted_before)
    body = {"rubric": "The answer is polite.", "provider": "for-judge"}
    judged = await admin.http.post(f"/chats/{chat_id}/judge", json=body)
    assert judged.status_code == status, judged.text


async def test_a_judge_is_recorded_too(admin: Person, declare: Declare, runtime: Runtime, tools: CountingTools) -> None:
    agent = await declare("plain", default="Certainly, madam.")
    verdict = [{"when": {"contains": "polite"}, "answer": '{"passed": true, "reason": "It says madam."}'}]
    await declare("judge", rules=verdict, default="Who knows?")
    chat_id = await begin(admin, agent, mode="record")
    async with working(runtime):
        await stream(admin, chat_id, "go")
    body = {"rubric": "The answer is polite.", "provider": "for-judge"}
    judged = await admin.http.post(f"/chats/{chat_id}/judge", json=body)
    assert judged.json() == {"passed": True, "reason": "It says madam."}
    unclear = await admin.http.post(f"/chats/{chat_id}/judge", json={**body, "rubric": "It rhymes."})
    assert unclear.status_code == 424
    assert "gave no verdict but: Who knows?" in unclear.text
    again = await begin(admin, agent, mode="replay", exchanges=await recorded(admin, chat_id))
    async with working(with_model(runtime, Model())):
        await stream(admin, again, "go")
    assert (await admin.http.post(f"/chats/{again}/judge", json=body)).json()["passed"] is True
    missing = await admin.http.post(f"/chats/{again}/judge", json={**body, "rubric": "It is rude."})
    assert missing.status_code == 409
    assert "the recording has no answer" in missing.text


async def test_only_whoever_may_test_an_agent_writes_its_models_answers(
    admin: Person, user: Person, declare: Declare, runtime: Runtime
) -> None:
    agent = await declare("plain")
    refused = await user.http.post(f"/agents/{agent}/test-chats", json={"mode": "replay"})
    assert refused.status_code == 403
    assert "sinas.agents/default/plain.test:all" in refused.text
    made = await user.http.post("/api/v1/agents", json={"name": "mine", "enabled_agents": [agent]})
    assert made.status_code == 201, made.text
    exchanges = [{"asked": {}, "said": {"text": "anything"}}]
    chat_id = await begin(user, "default/mine", mode="replay", exchanges=exchanges)
    # An ordinary chat is no test, and nobody sees or steers the tests of others.
    plain = await user.http.post(f"/agents/{agent}/chats", json={})
    assert (await user.http.get(f"/chats/{plain.json()['id']}/recording")).status_code == 404
    assert (await user.http.post(f"/chats/{plain.json()['id']}/judge", json={"rubric": "x"})).status_code == 404
    assert (await admin.http.post(f"/chats/{chat_id}/judge", json={"rubric": "x"})).status_code == 404


async def test_agents_of_others_that_are_called_in_a_test_are_not_scripted(
    admin: Person, user: Person, declare: Declare, runtime: Runtime, tools: CountingTools
) -> None:
    runtime = with_toolsets(runtime, tools)
    await declare("theirs", enabled_functions=["shop/look"])
    provider = (await admin.http.get("/api/v1/llm-providers/for-theirs")).json()["id"]
    body = {"name": "mine", "enabled_agents": ["default/theirs"], "llm_provider_id": provider}
    assert (await user.http.post("/api/v1/agents", json=body)).status_code == 201
    chat_id = await begin(user, "default/mine", mode="record")
    call = ToolCall("c", "call_agent_default__theirs", '{"message": "look"}')
    model = Model([Answer("", (call,))], [Answer("It failed.")])
    async with working(with_model(runtime, model)):
        heard = await stream(user, chat_id, "go")
    (end,) = [event for event in heard if event.name == "tool_end"]
    assert "sinas.agents/default/theirs.test:all" in end.data["result"]
    assert tools.ran == []


async def test_a_recording_goes_with_its_chat(admin: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id = await begin(admin, await declare("plain"), mode="record", expires_in=60)
    async with working(with_model(runtime, Model([Answer("Hi")]))):
        await stream(admin, chat_id, "go")
    assert (await admin.http.delete(f"/chats/{chat_id}")).status_code == 204
    for row in (RecordedRow, ChatRow):
        assert (await runtime.database.read(select(func.count()).select_from(row)))[0][0] == 0


async def test_what_is_wrong_with_a_recording_is_named(admin: Person, declare: Declare) -> None:
    agent = await declare("plain")
    body = {"mode": "replay", "exchanges": [{"asked": {}, "said": {"txt": "Hi"}}]}
    refused = await admin.http.post(f"/agents/{agent}/test-chats", json=body)
    assert refused.status_code == 422
    assert "txt" in refused.text

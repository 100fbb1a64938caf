"""Responses through the official SDK: whole, streamed, and gone on from."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from sqlalchemy import select, text

from sinas_server.kernel.blobs import free_unused
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import BlobRow
from sinas_server.openai_adapter.responses import FORGET_LOOP
from sinas_server.openai_adapter.tables import ResponseRow
from tests.chats.conftest import Declare, get_chat
from tests.fakes.llm_server import Call, FakeLLM, Reply
from tests.media import PDF, PNG, b64, data_url
from tests.openai_adapter.conftest import URL, Connect, Provide
from tests.people import Person

WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
MODEL = "main/fake-large"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer(stream: bool, provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    fake.default = Reply(text="Hi there, you.", prompt_tokens=20, completion_tokens=5, cached_tokens=8)
    asked: Any = {"model": MODEL, "input": "Hello", "instructions": "Be brief.", "metadata": {"a": "b"}}
    if stream:
        async with admin_sdk.responses.stream(**asked) as events:
            kinds = [event.type async for event in events]
            response: Any = await events.get_final_response()
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        assert "response.output_text.delta" in kinds
    else:
        response = await admin_sdk.responses.create(**asked)
    assert (response.output_text, response.status, response.model) == ("Hi there, you.", "completed", MODEL)
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (20, 5, 25)
    assert response.usage.input_tokens_details.cached_tokens == 8
    assert response.metadata == {"a": "b"}
    assert [message["role"] for message in fake.requests[0].body["messages"]] == ["system", "user"]
    again = await admin_sdk.responses.retrieve(response.id)
    assert (again.id, again.output_text) == (response.id, "Hi there, you.")


async def test_the_numbers_of_events_are_in_order(provide: Provide, admin: Person) -> None:
    await provide("main")
    answer = await admin.http.post(f"{URL}/responses", json={"model": MODEL, "input": "Hello", "stream": True})
    events = [json.loads(block.partition("data: ")[2]) for block in answer.text.strip().split("\n\n")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True])
async def test_functions_of_the_client(stream: bool, provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    calls = [Call(name="weather", arguments='{"city":"Paris"}', id="call_1"), Call(name="weather", id="call_2")]
    fake.replies = [Reply(text="Looking.", tool_calls=calls, chunk_size=5), Reply(text="Sunny.", after_tool=True)]
    asked: Any = {"model": MODEL, "input": "Hello", "tools": [WEATHER]}
    if stream:
        async with admin_sdk.responses.stream(**asked) as events:
            first: Any = await events.get_final_response()
    else:
        first = await admin_sdk.responses.create(**asked)
    assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
    made = [(item.call_id, item.arguments) for item in first.output[1:]]
    assert made == [("call_1", '{"city":"Paris"}'), ("call_2", "{}")]
    results: Any = [{"type": "function_call_output", "call_id": call_id, "output": "18"} for call_id, _ in made]
    by_id = await admin_sdk.responses.create(model=MODEL, input=results, previous_response_id=first.id, tools=[WEATHER])
    assert by_id.output_text == "Sunny."
    fake.replies = [Reply(text="Sunny again.", after_tool=True)]
    items: Any = [{"role": "user", "content": "Hello"}, *first.model_dump(exclude_none=True)["output"], *results]
    by_items = await admin_sdk.responses.create(model=MODEL, input=items, tools=[WEATHER])
    assert by_items.output_text == "Sunny again."
    assert fake.requests[1].body["messages"] == fake.requests[2].body["messages"]


async def test_a_chain_is_told_whole(provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    last: str | None = None
    for number in range(3):
        fake.default = Reply(text=f"answer {number}")
        response = await admin_sdk.responses.create(
            model=MODEL, input=f"question {number}", previous_response_id=last, instructions=f"rule {number}"
        )
        last = response.id
    said = [message["content"] for message in fake.requests[-1].body["messages"]]
    assert said == ["rule 2", "question 0", "answer 0", "question 1", "answer 1", "question 2"]


async def test_a_response_is_its_users_alone(
    provide: Provide, connect: Connect, admin_sdk: AsyncOpenAI, user: Person, runtime: Runtime
) -> None:
    await provide("main")
    mine = await admin_sdk.responses.create(model=MODEL, input="Hello")
    unkept = await admin_sdk.responses.create(model=MODEL, input="Hello", store=False)
    other = connect(user.token)
    for client, response_id in ((other, mine.id), (admin_sdk, unkept.id), (admin_sdk, "resp_none")):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response_id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(response_id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model=MODEL, input="More", previous_response_id=response_id)
        assert caught.value.param == "previous_response_id"
    await admin_sdk.responses.delete(mine.id)
    with pytest.raises(openai.NotFoundError):
        await admin_sdk.responses.retrieve(mine.id)


async def test_old_responses_are_forgotten(provide: Provide, admin_sdk: AsyncOpenAI, runtime: Runtime) -> None:
    await provide("main")
    response = await admin_sdk.responses.create(model=MODEL, input="Hello")
    await runtime.database.rows(text("UPDATE openai_responses SET expires_at = now()"))
    with pytest.raises(openai.NotFoundError):
        await admin_sdk.responses.retrieve(response.id)
    await FORGET_LOOP.step(runtime)
    assert not await runtime.database.read(select(ResponseRow.id))


async def test_an_agent_goes_on_in_its_chat(declare: Declare, sdk: AsyncOpenAI, user: Person, worker: None) -> None:
    await declare("helper")
    first: Any = await sdk.responses.create(model="agent:default/helper", input="Hello")
    second: Any = await sdk.responses.create(model="agent:default/helper", input="More", previous_response_id=first.id)
    assert first.output_text == second.output_text == "Hello, I am the agent."
    chat_id = first.sinas["chat_id"]
    assert second.sinas["chat_id"] == chat_id
    assert len((await get_chat(user, chat_id))["messages"]) == 4
    branch: Any = await sdk.responses.create(
        model="agent:default/helper", input="Something else", previous_response_id=first.id
    )
    assert branch.sinas["chat_id"] != chat_id, "the chat has gone on since"
    said = [message["content"] for message in (await get_chat(user, branch.sinas["chat_id"]))["messages"]]
    assert said == ["Hello", "Hello, I am the agent.", "Something else", "Hello, I am the agent."]


async def test_what_goes_on_from_the_same_place_at_once_does_not_meet(
    declare: Declare, sdk: AsyncOpenAI, user: Person, worker: None
) -> None:
    await declare("helper")
    first: Any = await sdk.responses.create(model="agent:default/helper", input="Hello")
    others: Any = await asyncio.gather(
        *(
            sdk.responses.create(model="agent:default/helper", input=f"Then {n}?", previous_response_id=first.id)
            for n in range(4)
        )
    )
    chats = [other.sinas["chat_id"] for other in others]
    assert len(set(chats)) == 4
    assert first.sinas["chat_id"] in chats
    for n, chat_id in enumerate(chats):
        said = [message["content"] for message in (await get_chat(user, chat_id))["messages"]]
        assert said == ["Hello", "Hello, I am the agent.", f"Then {n}?", "Hello, I am the agent."]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"background": True}, "background"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input.0.call_id"),
        ({"input": [{"content": "x"}]}, "input.0.role"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input"),
        ({"instructions": "Be kind.", "input": [{"role": "user", "content": ""}]}, "input.0.content"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.call_id"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ],
)
async def test_what_cannot_be_honored_is_refused_by_name(
    more: dict[str, object], param: str, provide: Provide, fake: FakeLLM, admin: Person
) -> None:
    await provide("main")
    answer = await admin.http.post(f"{URL}/responses", json={"model": MODEL, "input": "Hello", **more})
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert error["param"] == param or param in error["message"], error
    assert fake.requests == []


async def test_a_cut_short_answer_is_incomplete(provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI) -> None:
    await provide("main")
    fake.default = Reply(text="Hi the", finish_reason="length")
    response = await admin_sdk.responses.create(model=MODEL, input="Hello", max_output_tokens=16)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"


async def test_a_failure_in_mid_stream(provide: Provide, fake: FakeLLM, admin: Person, runtime: Runtime) -> None:
    await provide("main")
    fake.default = Reply(text="One two three four.", fail_after=3, error="overloaded", pause=0.05)
    answer = await admin.http.post(f"{URL}/responses", json={"model": MODEL, "input": "Hello", "stream": True})
    last = json.loads(answer.text.strip().split("\n\n")[-1].partition("data: ")[2])
    assert last["type"] == "response.failed"
    assert "overloaded" in last["response"]["error"]["message"]
    assert not await runtime.database.read(select(ResponseRow.id))


async def test_bytes_are_kept_outside_the_rows_and_go_with_the_response(
    provide: Provide, fake: FakeLLM, admin_sdk: AsyncOpenAI, runtime: Runtime
) -> None:
    await provide("main")
    image: Any = {"type": "input_image", "image_url": data_url("image/png", PNG), "detail": "low"}
    file: Any = {"type": "input_file", "file_data": data_url("application/pdf", PDF), "filename": "bill.pdf"}
    address: Any = {"type": "input_image", "image_url": "https://example.com/cat.png"}
    said: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Look"}, image, file, address]}]
    first = await admin_sdk.responses.create(model=MODEL, input=said)
    second = await admin_sdk.responses.create(model=MODEL, input="And?", previous_response_id=first.id)
    assert fake.requests[1].body["messages"][0] == fake.requests[0].body["messages"][0]
    rows = str(await runtime.database.rows(select(ResponseRow.__table__)))
    assert "https://example.com/cat.png" in rows
    assert b64(PNG)[:60] not in rows
    assert b64(PDF)[:60] not in rows
    await free_unused(runtime, timedelta(0))
    await admin_sdk.responses.create(model=MODEL, input="Again", previous_response_id=second.id)
    assert fake.requests[2].body["messages"][0] == fake.requests[0].body["messages"][0]
    assert len(await runtime.database.rows(select(BlobRow.key))) == 2
    await admin_sdk.responses.delete(first.id)
    await free_unused(runtime, timedelta(0))
    assert await runtime.database.rows(select(BlobRow.key)) == []


async def test_bytes_that_were_lost_are_told(provide: Provide, admin: Person, runtime: Runtime) -> None:
    await provide("main")
    image: Any = {"type": "input_image", "image_url": data_url("image/png", PNG)}
    body = {"model": MODEL, "input": [{"role": "user", "content": [image]}]}
    first = (await admin.http.post(f"{URL}/responses", json=body)).json()
    (row,) = await runtime.database.rows(select(BlobRow.key))
    await runtime.blobs.delete(row.key)
    body = {"model": MODEL, "input": "And?", "previous_response_id": first["id"]}
    answer = await admin.http.post(f"{URL}/responses", json=body)
    assert answer.status_code == 410
    assert "gone" in answer.json()["error"]["message"]

"""Images, recordings and files on providers that take them, and precise refusals on those that do not."""

import json
from typing import cast

import pytest
from pydantic import JsonValue
from sqlalchemy import func, select

from sinas_server.chats.tables import MessageRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import BlobRow
from tests.chats.conftest import open_chat
from tests.fakes.llm_server import FakeLLM, Provider, Reply
from tests.media import PDF, PNG, WAV, b64, data_url
from tests.people import Person
from tests.providers.conftest import Json, Provide, fake, provide

__all__ = ["fake", "provide"]

TEXT: Json = {"type": "text", "text": "look at this"}
PARTS: dict[str, Json] = {
    "image": {"type": "image", "image": data_url("image/png", PNG)},
    "image url": {"type": "image", "image": "https://example.com/cat.png"},
    "audio": {"type": "audio", "data": b64(WAV), "format": "wav"},
    "audio url": {"type": "audio", "url": "https://example.com/cat.wav", "format": "wav"},
    "pdf": {"type": "file", "file_data": b64(PDF), "filename": "bill.pdf"},
    "pdf url": {"type": "file", "file_url": "https://example.com/bill.pdf"},
    "text": {"type": "file", "file_data": b64(b"a;b"), "filename": "orders.csv"},
    "zip": {"type": "file", "file_data": b64(b"PK"), "mime_type": "application/zip"},
}
TAKES: dict[Provider, set[str]] = {
    "openai": {"image", "image url", "audio", "pdf", "text"},
    "anthropic": {"image", "image url", "pdf", "pdf url", "text"},
    "mistral": {"image", "image url", "pdf", "pdf url", "text"},
    "ollama": {"image", "text"},
}
SIGNS = {
    "image": b64(PNG),
    "audio": b64(WAV),
    "pdf": b64(PDF),
    "text": "a;b",
    "image url": "https://example.com/cat.png",
    "pdf url": "https://example.com/bill.pdf",
}
"""What shows on the wire that a part was sent."""


async def declare(admin: Person, provider_id: str, **fields: JsonValue) -> str:
    made = await admin.http.post("/api/v1/agents", json={"name": "eyes", "llm_provider_id": provider_id, **fields})
    assert made.status_code == 201, made.text
    return "default/eyes"


async def count(runtime: Runtime) -> int:
    """How many messages and blobs there are."""
    rows = await runtime.database.rows(
        select(
            select(func.count()).select_from(MessageRow).scalar_subquery()
            + select(func.count()).select_from(BlobRow).scalar_subquery()
        )
    )
    return cast(int, rows[0][0])


@pytest.mark.parametrize("kind", TAKES)
async def test_each_part_is_sent_or_refused_before_anything_is_kept(
    kind: Provider, user: Person, admin: Person, provide: Provide, fake: FakeLLM, runtime: Runtime, worker: None
) -> None:
    agent = await declare(admin, await provide("main", kind))
    for name, part in PARTS.items():
        chat_id = await open_chat(user, agent)
        before = (await count(runtime), len(fake.requests))
        answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": [TEXT, part]}, timeout=60)
        if name in TAKES[kind]:
            assert answer.status_code == 200, answer.text
            assert SIGNS[name] in json.dumps(fake.requests[-1].body["messages"])
            continue
        assert answer.status_code == 422, name
        (problem,) = answer.json()["detail"]
        assert problem["loc"] == ["body", "content", 1]
        assert f"{kind} does not take {part['type']} content of type " in problem["msg"]
        assert (await count(runtime), len(fake.requests)) == before


async def test_every_door_refuses_what_the_model_does_not_take(
    user: Person, admin: Person, provide: Provide, fake: FakeLLM
) -> None:
    agent = await declare(admin, await provide("main", "mistral", default_model="codestral-latest"))
    chat_id = await open_chat(user, agent)
    content = [TEXT, PARTS["image"]]
    said = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PARTS["image"]["image"]}}]}
    earlier = [said, {"role": "assistant", "content": "Nice."}, {"role": "user", "content": "Why?"}]
    doors: list[tuple[str, Json, list[str | int]]] = [
        (f"/chats/{chat_id}/messages", {"content": content}, ["body", "content", 1]),
        (f"/chats/{chat_id}/messages/stream", {"content": content}, ["body", "content", 1]),
        (f"/agents/{agent}/invoke", {"message": content}, ["body", "message", 1]),
        (f"/agents/{agent}/chats/batch", {"inputs": [{"message": content}]}, ["body", "inputs", 0, "message", 1]),
    ]
    for url, body, loc in doors:
        answer = await user.http.post(url, json=body)
        assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, loc)
        assert "mistral's model codestral-latest does not take image content" in answer.json()["detail"][0]["msg"]
    for messages in ([said], earlier):
        for model in (agent, "main/codestral-latest"):
            answer = await admin.http.post(
                "/adapters/openai/v1/chat/completions", json={"model": model, "messages": messages}
            )
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (422, "messages.0.content.0")
            assert "codestral-latest does not take image content" in error["message"]
    assert fake.requests == []


async def test_a_provider_that_cannot_take_the_parts_is_not_fallen_back_on(
    user: Person, admin: Person, provide: Provide, fake: FakeLLM, worker: None
) -> None:
    first = await provide("first", "anthropic")
    await provide("deaf", "mistral", default_model="codestral-latest")
    await provide("spare", "openai")
    agent = await declare(admin, first, fallback_providers=["deaf", "spare"])
    chat_id = await open_chat(user, agent)
    fake.replies.append(Reply(status=400, error="no"))
    fake.replies.append(Reply(text="A pixel."))
    answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": [PARTS["image"]]}, timeout=60)
    assert answer.json()["content"] == "A pixel."
    assert [request.path for request in fake.requests] == ["/v1/messages", "/v1/chat/completions"]
    fake.replies.append(Reply(status=400, error="no"))
    fake.replies.append(Reply(text="Text is fine.", when="hello"))
    answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "hello"}, timeout=60)
    assert answer.json()["content"] == "Text is fine."
    assert fake.requests[-1].path == "/mistral/v1/chat/completions"
    told = json.dumps(fake.requests[-1].body["messages"])
    assert "[image of type image/png, which this model cannot read]" in told


async def test_a_chat_goes_on_with_a_model_that_cannot_read_what_was_sent_before(
    user: Person, admin: Person, provide: Provide, fake: FakeLLM, worker: None
) -> None:
    agent = await declare(admin, await provide("main", "openai"))
    chat_id = await open_chat(user, agent)
    for part in (PARTS["audio"], PARTS["pdf"]):
        assert (
            await user.http.post(f"/chats/{chat_id}/messages", json={"content": [TEXT, part]}, timeout=60)
        ).status_code == 200
    other = await provide("other", "anthropic")
    changed = await admin.http.patch("/api/v1/agents/default/eyes", json={"llm_provider_id": other})
    assert changed.status_code == 200, changed.text
    answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": "and now?"}, timeout=60)
    assert answer.status_code == 200, answer.text
    told = json.dumps(fake.requests[-1].body["messages"])
    assert "[audio of type audio/wav, which this model cannot read]" in told
    assert b64(PDF) in told
    refused = await user.http.post(f"/chats/{chat_id}/messages", json={"content": [PARTS["audio"]]})
    assert refused.status_code == 422


async def test_no_address_is_fetched_here(
    user: Person, admin: Person, provide: Provide, fake: FakeLLM, worker: None
) -> None:
    """An https address of this machine would be refused or fail if it were asked; the provider gets it as it is."""
    agent = await declare(admin, await provide("main", "openai"))
    for url in ("https://127.0.0.1:1/a.png", "https://169.254.169.254/latest/meta-data"):
        chat_id = await open_chat(user, agent)
        content = [{"type": "image", "image": url}]
        answer = await user.http.post(f"/chats/{chat_id}/messages", json={"content": content}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert fake.requests[-1].body["messages"][-1]["content"] == [{"type": "image_url", "image_url": {"url": url}}]

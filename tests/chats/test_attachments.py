"""What messages hold beside text: kept once and outside the rows, given to the model, read back, and freed."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import JsonValue
from sqlalchemy import select

from sinas_server.backends.blobs import BlobMissingError
from sinas_server.identity.reference import USERS
from sinas_server.kernel import blobs
from sinas_server.kernel.blobs import KEPT, free_unused
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import Base, BlobRow
from sinas_server.kit.crypto import sign
from sinas_server.settings import Settings
from tests.chats.conftest import Declare, get_chat, open_chat, stream, text_of
from tests.fakes.llm_server import FakeLLM
from tests.media import PDF, PNG, WAV, b64, data_url, png
from tests.people import Person, make_person
from tests.providers.conftest import Provide, fake, provide

__all__ = ["fake", "provide"]

IMAGE: dict[str, JsonValue] = {"type": "image", "image": data_url("image/png", PNG), "detail": "low"}
TEXT: dict[str, JsonValue] = {"type": "text", "text": "look at this"}
NOW = timedelta(0)


@pytest.fixture
async def other(runtime: Runtime, app: FastAPI) -> AsyncIterator[Person]:
    """Someone else with the role Users."""
    person = await make_person(runtime, app, [USERS])
    async with person.http:
        yield person


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_attachment_size": 100_000, "max_attachments": 3})


async def shown(person: Person, chat_id: str, index: int = 0) -> list[dict[str, Any]]:
    """The parts of a message as its user reads them."""
    return cast(list[dict[str, Any]], json.loads((await get_chat(person, chat_id))["messages"][index]["content"]))


async def kept(runtime: Runtime) -> list[str]:
    """The keys of all blobs."""
    async with runtime.database.unit() as db:
        return list(await db.scalars(select(BlobRow.key)))


async def tables_with(runtime: Runtime, wanted: str) -> list[str]:
    """The tables with a row that holds a text anywhere."""
    found = []
    for table in Base.metadata.sorted_tables:
        rows = await runtime.database.rows(select(table))
        if any(wanted in str(row) for row in rows):
            found.append(table.name)
    return found


async def asking(admin: Person, provider_id: str, **fields: JsonValue) -> str:
    """An agent that asks a provider."""
    name = f"of-{provider_id[:8]}"
    made = await admin.http.post("/api/v1/agents", json={"name": name, "llm_provider_id": provider_id, **fields})
    assert made.status_code == 201, made.text
    return f"default/{name}"


async def send(person: Person, chat_id: str, *parts: JsonValue) -> httpx2.Response:
    """A message of these parts, answered."""
    return await person.http.post(f"/chats/{chat_id}/messages", json={"content": list(parts)}, timeout=60)


async def test_bytes_are_kept_once_and_outside_the_rows(
    user: Person, admin: Person, provide: Provide, fake: FakeLLM, runtime: Runtime, worker: None
) -> None:
    chat_id = await open_chat(user, await asking(admin, await provide("main")))
    for _ in range(2):
        assert (await send(user, chat_id, TEXT, IMAGE)).status_code == 200
    assert len(await kept(runtime)) == 1
    assert await tables_with(runtime, b64(PNG)[:60]) == []
    asked = fake.requests[-1].body["messages"]
    images = [part["image_url"] for message in asked if message["role"] == "user" for part in message["content"][1:]]
    assert images == [{"url": data_url("image/png", PNG), "detail": "low"}] * 2


PARTS: list[tuple[dict[str, JsonValue], bytes, str, str]] = [
    (IMAGE, PNG, "image/png", "inline"),
    ({"type": "audio", "data": b64(WAV), "format": "wav"}, WAV, "audio/wav", "inline"),
    (
        {"type": "file", "file_data": data_url("application/pdf", PDF), "filename": "Bericht (1).pdf"},
        PDF,
        "application/pdf",
        "attachment; filename*=UTF-8''Bericht%20%281%29.pdf",
    ),
    (
        {"type": "file", "file_data": b64(b"<script>"), "filename": "a.html", "mime_type": "text/html"},
        b"<script>",
        "text/html; charset=utf-8",
        "attachment; filename*=UTF-8''a.html",
    ),
]
FIELDS = {"image": ("image",), "audio": ("url", "format"), "file": ("file_url", "filename", "mime_type")}


@pytest.mark.parametrize(("part", "content", "media_type", "disposition"), PARTS)
async def test_what_was_sent_is_read_back(
    part: dict[str, JsonValue],
    content: bytes,
    media_type: str,
    disposition: str,
    user: Person,
    client: httpx2.AsyncClient,
    declare: Declare,
    worker: None,
) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    assert text_of(await stream(user, chat_id, [TEXT, part])) == "Hello, I am the agent."
    text, other = await shown(user, chat_id)
    assert text == TEXT
    kind = cast(str, part["type"])
    assert set(other) == {"type", *FIELDS[kind], *(["detail"] if "detail" in part else [])}
    address = other[FIELDS[kind][0]]
    answer = await client.get(address)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-type"] == media_type
    assert answer.headers["content-disposition"] == disposition
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "private" in answer.headers["cache-control"]
    assert (await shown(user, chat_id))[1][FIELDS[kind][0]] == address  # so that browsers need not ask again


async def test_who_may_read_it(
    user: Person, other: Person, client: httpx2.AsyncClient, declare: Declare, worker: None, runtime: Runtime
) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    await stream(user, chat_id, [IMAGE])
    address = (await shown(user, chat_id))[0]["image"]
    path, asked = urlsplit(address).path, parse_qs(urlsplit(address).query)
    assert (await user.http.get(path)).content == PNG
    assert (await client.get(path)).status_code == 401
    assert (await other.http.get(path)).status_code == 404
    expires, signature = asked["expires"][0], asked["signature"][0]
    past, secret = "1000000000", runtime.settings.signing_key
    attachment_id = path.rpartition("/")[2]
    wrong = [
        {"expires": expires, "signature": signature[:-1] + ("0" if signature[-1] != "0" else "1")},
        {"expires": str(int(expires) + 1), "signature": signature},
        {"expires": past, "signature": sign(secret, "attachment", chat_id, attachment_id, past)},
        {"expires": expires, "signature": sign(secret, "another purpose", chat_id, attachment_id, expires)},
        {"signature": signature},
    ]
    for params in wrong:
        assert (await client.get(path, params=params)).status_code == 401
    foreign = await open_chat(other, await declare("other"))
    assert (await other.http.get(f"/chats/{foreign}/attachments/{attachment_id}")).status_code == 404
    assert (await user.http.delete(f"/chats/{chat_id}")).status_code == 204
    assert (await client.get(address)).status_code == 404


async def test_it_is_asked_for_in_parts_and_not_twice(user: Person, declare: Declare, worker: None) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    await stream(user, chat_id, [IMAGE])
    address = (await shown(user, chat_id))[0]["image"]
    whole = await user.http.get(address)
    again = await user.http.get(address, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    size = len(PNG)
    ranges = [("0-3", 0, 3), ("4-", 4, size - 1), ("-5", size - 5, size - 1), ("2-99999", 2, size - 1)]
    for asked, first, last in ranges:
        part = await user.http.get(address, headers={"Range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, PNG[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
    behind = await user.http.get(address, headers={"Range": f"bytes={size}-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, f"bytes */{size}")
    for odd in ("bytes=9-2", "bytes=-", "bytes=0-1,4-5", "lines=1-2"):
        assert (await user.http.get(address, headers={"Range": odd})).content == PNG


async def test_too_large_and_too_many_are_refused(user: Person, declare: Declare, runtime: Runtime) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    large: JsonValue = {"type": "image", "image": data_url("image/png", png(400, 400))}
    answer = await send(user, chat_id, TEXT, large)
    assert answer.status_code == 413
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", "content", 1, "image"]
    assert "at most 100000 are taken" in problem["msg"]
    answer = await send(user, chat_id, *[IMAGE] * 4)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "content"]
    assert "at most 3" in answer.json()["detail"][0]["msg"]
    assert await kept(runtime) == []


async def test_the_bytes_go_with_the_last_chat_that_holds_them(
    user: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    agent = await declare("plain")
    first, second = await open_chat(user, agent), await open_chat(user, agent)
    for chat_id in (first, second):
        await stream(user, chat_id, [IMAGE])
    await user.http.delete(f"/chats/{first}")
    await free_unused(runtime, NOW)
    (key,) = await kept(runtime)
    assert await blobs.whole(runtime, key) == PNG
    await user.http.delete(f"/chats/{second}")
    await free_unused(runtime)  # somebody may have brought the same just now
    assert await kept(runtime) == [key]
    await free_unused(runtime, NOW)
    assert await kept(runtime) == []
    with pytest.raises(BlobMissingError):
        await runtime.blobs.size(key)


async def test_what_no_message_came_to_hold_goes_too(
    user: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    chat_id = await open_chat(user, await declare("plain"))
    assert timedelta(minutes=10) <= KEPT  # far longer than between the bytes and the message

    async def pieces() -> AsyncIterator[bytes]:
        yield PNG

    blob = await blobs.keep(runtime, pieces(), 1000)  # and the process dies before the message is there
    await free_unused(runtime)
    assert await kept(runtime) == [blob.key]
    await free_unused(runtime, NOW)
    assert await kept(runtime) == []
    await stream(user, chat_id, [IMAGE])
    await runtime.blobs.delete(blob.key)  # as if it had died between the bytes and the row
    assert (await send(user, chat_id, IMAGE)).status_code == 200
    assert await blobs.whole(runtime, blob.key) == PNG


async def test_every_door_keeps_them_outside(user: Person, declare: Declare, worker: None, runtime: Runtime) -> None:
    agent = await declare("plain")
    chat_id = await open_chat(user, agent)
    image = cast(str, IMAGE["image"])
    forms: list[JsonValue] = [
        {"type": "image_url", "image_url": {"url": image}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": b64(PNG)}},
    ]
    said: list[JsonValue] = [{"role": "user", "content": forms}, {"role": "assistant", "content": "And?"}]
    doors: list[tuple[str, JsonValue, dict[str, str]]] = [
        (f"/chats/{chat_id}/messages", {"content": [IMAGE]}, {}),
        (f"/chats/{chat_id}/messages", {"content": [IMAGE]}, {"Idempotency-Key": "one"}),
        (f"/chats/{chat_id}/messages", {"content": [IMAGE]}, {"Idempotency-Key": "one"}),
        (f"/agents/{agent}/invoke", {"message": [IMAGE], "session_key": "s"}, {}),
        (f"/agents/{agent}/invoke", {"message": [IMAGE]}, {"Idempotency-Key": "two"}),
        (f"/agents/{agent}/chats/batch", {"inputs": [{"message": [IMAGE]}, {"message": "x"}]}, {}),
        ("/adapters/openai/v1/chat/completions", {"model": agent, "messages": [*said, said[0]]}, {}),
        ("/adapters/openai/v1/chat/completions", {"model": agent, "messages": [said[0]]}, {"X-Chat-ID": chat_id}),
    ]
    for url, body, headers in doors:
        answer = await user.http.post(url, json=body, headers=headers, timeout=60)
        assert answer.status_code in (200, 202), answer.text
    assert len(await kept(runtime)) == 1
    assert await tables_with(runtime, b64(PNG)[:60]) == []
    await free_unused(runtime, NOW)
    assert len(await kept(runtime)) == 1
    chats = (await user.http.get("/chats", params={"include_archived": "true"})).json()
    for chat in chats:
        await user.http.delete(f"/chats/{chat['id']}")
    await free_unused(runtime, NOW)
    assert await kept(runtime) == []


async def test_what_was_read_can_be_sent_again(
    user: Person, other: Person, declare: Declare, worker: None, runtime: Runtime
) -> None:
    agent = await declare("plain")
    first, second = await open_chat(user, agent), await open_chat(user, agent)
    sent: list[dict[str, JsonValue]] = [IMAGE, PARTS[1][0], PARTS[2][0]]
    await stream(user, first, [TEXT, *sent])
    parts = await shown(user, first)
    await stream(user, second, cast(list[JsonValue], parts))
    await user.http.delete(f"/chats/{first}")
    await free_unused(runtime, NOW)
    again = await shown(user, second)
    for part, expected in zip(again[1:], (PNG, WAV, PDF), strict=True):
        address = part[FIELDS[part["type"]][0]]
        assert (await user.http.get(address)).content == expected
    assert again[3]["filename"] == "Bericht (1).pdf"
    foreign = await open_chat(other, agent)
    own = again[1]["image"]
    for wrong in (own, own.replace(second, first), "http://example.com/a.png"):
        answer = await send(other, foreign, {"type": "image", "image": wrong})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "content", 0, "image"]


async def test_bytes_that_were_lost_are_told(
    user: Person, admin: Person, provide: Provide, runtime: Runtime, worker: None
) -> None:
    chat_id = await open_chat(user, await asking(admin, await provide("main")))
    await send(user, chat_id, IMAGE)
    (key,) = await kept(runtime)
    await runtime.blobs.delete(key)
    assert (await user.http.get((await shown(user, chat_id))[0]["image"])).status_code == 410
    answer = await send(user, chat_id, TEXT)
    assert answer.status_code == 502
    assert "are gone from the store" in answer.json()["detail"]

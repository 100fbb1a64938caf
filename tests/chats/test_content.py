"""Messages of several parts: accepted, kept, shown and given to the model."""

import base64
import json

import pytest
from pydantic import JsonValue, TypeAdapter, ValidationError

from sinas_server.backends.llm import MediaPart, TextPart
from sinas_server.chats.content import Content, for_model, shown, stored
from tests.chats.conftest import Declare, get_chat, open_chat, stream, text_of
from tests.people import Person

DATA = base64.b64encode(b"bytes").decode()
TEXT: dict[str, JsonValue] = {"type": "text", "text": "look at this"}
GOOD: list[tuple[dict[str, JsonValue], MediaPart]] = [
    (
        {"type": "image", "image": f"data:image/png;base64,{DATA}", "detail": "low"},
        MediaPart("image", "image/png", data_base64=DATA, detail="low"),
    ),
    (
        {"type": "image", "image": "https://example.com/a.webp?x=1"},
        MediaPart("image", "image/webp", url="https://example.com/a.webp?x=1"),
    ),
    ({"type": "audio", "data": DATA, "format": "mp3"}, MediaPart("audio", "audio/mpeg", data_base64=DATA)),
    (
        {"type": "audio", "url": "https://example.com/a", "format": "wav"},
        MediaPart("audio", "audio/wav", url="https://example.com/a"),
    ),
    (
        {"type": "file", "file_data": DATA, "filename": "a.pdf", "mime_type": "application/pdf"},
        MediaPart("file", "application/pdf", data_base64=DATA, filename="a.pdf"),
    ),
    (
        {"type": "file", "file_data": f"data:text/csv;charset=utf-8;base64,{DATA}"},
        MediaPart("file", "text/csv", data_base64=DATA),
    ),
    (
        {"type": "file", "file_url": "https://example.com/x/report.pdf"},
        MediaPart("file", "application/pdf", url="https://example.com/x/report.pdf", filename="report.pdf"),
    ),
]
BAD: list[JsonValue] = [
    "",
    [],
    [{"type": "video"}],
    [{"type": "text"}],
    [{"type": "image", "image": "http://example.com/a.png"}],
    [{"type": "image", "image": "file:///etc/passwd"}],
    [{"type": "image", "image": "data:image/png;base64,%%%"}],
    [{"type": "image", "image": "data:image/png,plain"}],
    [{"type": "image", "image": "https://example.com/a.png", "detail": "most"}],
    [{"type": "audio", "format": "mp3"}],
    [{"type": "audio", "data": DATA, "url": "https://example.com/a", "format": "mp3"}],
    [{"type": "audio", "data": "not base64!", "format": "mp3"}],
    [{"type": "audio", "data": DATA, "format": "flac"}],
    [{"type": "file"}],
    [{"type": "file", "file_id": "file-1"}],
    [{"type": "file", "file_data": "not base64!"}],
    [{"type": "file", "file_url": "ftp://example.com/a"}],
]


@pytest.mark.parametrize(("part", "expected"), GOOD)
def test_a_part_becomes_what_models_take(part: dict[str, JsonValue], expected: MediaPart) -> None:
    content: Content = TypeAdapter[Content](Content).validate_python([TEXT, part])
    text, parts = stored(content)
    assert text is None
    assert parts == [TEXT, part]
    assert json.loads(shown(text, parts) or "") == parts
    assert for_model(text, parts) == (TextPart("look at this"), expected)


@pytest.mark.parametrize("content", BAD)
def test_what_no_model_could_take_is_refused(content: JsonValue) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter[Content](Content).validate_python(content)


async def test_parts_are_shown_as_json_text(user: Person, declare: Declare, worker: None) -> None:
    rules = [{"when": {"contains": "this"}, "answer": "I see."}]
    chat_id = await open_chat(user, await declare("plain", rules))
    sent: list[JsonValue] = [TEXT, GOOD[0][0]]
    assert text_of(await stream(user, chat_id, sent)) == "I see."
    assert json.loads((await get_chat(user, chat_id))["messages"][0]["content"]) == sent
    wrong = await user.http.post(f"/chats/{chat_id}/messages/stream", json={"content": BAD[4]})
    assert wrong.status_code == 422
    assert wrong.json()["detail"]

"""What messages may hold: text, images, recordings and files, and what is refused with which field."""

import json
from dataclasses import replace

import pytest
from pydantic import JsonValue, TypeAdapter, ValidationError

from sinas_server.backends.llm import MediaPart, Part, TextPart
from sinas_server.chats.content import Content, sent_parts
from tests.chats.conftest import Declare, open_chat
from tests.media import GIF, JPEG, M4A, MP3, MP3_BARE, OGG, PDF, PNG, WAV, WEBP, b64, data_url
from tests.people import Person

TEXT: dict[str, JsonValue] = {"type": "text", "text": "look at this"}
URL = "https://example.com/x/report.pdf?x=1"
ANY: TypeAdapter[Content] = TypeAdapter(Content)


def media(part: MediaPart, data: bytes) -> MediaPart:
    return replace(part, data=data, size=len(data))


GOOD: list[tuple[dict[str, JsonValue], Part]] = [
    (
        {"type": "image", "image": data_url("image/png", PNG), "detail": "low"},
        media(MediaPart("image", "image/png", detail="low"), PNG),
    ),
    ({"type": "image", "image": data_url("image/jpg", JPEG)}, media(MediaPart("image", "image/jpeg"), JPEG)),
    ({"type": "image", "image": data_url("image/gif", GIF)}, media(MediaPart("image", "image/gif"), GIF)),
    ({"type": "image", "image": data_url("image/webp", WEBP)}, media(MediaPart("image", "image/webp"), WEBP)),
    (
        {"type": "image", "image": "https://example.com/a.webp?x=1"},
        MediaPart("image", "image/webp", url="https://example.com/a.webp?x=1"),
    ),
    ({"type": "audio", "data": b64(WAV), "format": "wav"}, media(MediaPart("audio", "audio/wav"), WAV)),
    ({"type": "audio", "data": b64(MP3), "format": "mp3"}, media(MediaPart("audio", "audio/mpeg"), MP3)),
    ({"type": "audio", "data": b64(MP3_BARE), "format": "mp3"}, media(MediaPart("audio", "audio/mpeg"), MP3_BARE)),
    ({"type": "audio", "data": b64(M4A), "format": "m4a"}, media(MediaPart("audio", "audio/mp4"), M4A)),
    ({"type": "audio", "data": b64(OGG), "format": "ogg"}, media(MediaPart("audio", "audio/ogg"), OGG)),
    (
        {"type": "audio", "url": "https://example.com/a", "format": "wav"},
        MediaPart("audio", "audio/wav", url="https://example.com/a"),
    ),
    (
        {"type": "file", "file_data": b64(PDF), "filename": "a.pdf", "mime_type": "application/pdf"},
        media(MediaPart("file", "application/pdf", filename="a.pdf"), PDF),
    ),
    (
        {"type": "file", "file_data": b64(PDF), "filename": "a.pdf", "mime_type": ""},
        media(MediaPart("file", "application/pdf", filename="a.pdf"), PDF),
    ),
    (
        {"type": "file", "file_data": "data:text/csv;charset=utf-8;base64," + b64(b"a;b")},
        media(MediaPart("file", "text/csv"), b"a;b"),
    ),
    (
        {"type": "file", "file_url": URL},
        MediaPart("file", "application/pdf", url=URL, filename="report.pdf"),
    ),
]
BAD: list[tuple[JsonValue, str, str]] = [
    ("", "text", "at least 1 character"),
    ([], "parts", "at least 1 item"),
    (None, "parts", "valid list"),
    ([{"type": "video"}], "parts.0", "does not match"),
    ([{"type": "text"}], "parts.0.text.text", "required"),
    ([{"type": "image", "image": "file:///etc/passwd"}], "parts.0.image.image", "must be an https URL"),
    ([TEXT, {"type": "image", "image": "data:image/png;base64,%%%"}], "parts.1.image.image", "must be base64"),
    ([{"type": "image", "image": "data:image/png;base64,"}], "parts.0.image.image", "must not be empty"),
    ([{"type": "image", "image": "data:image/png,plain"}], "parts.0.image.image", "must be a data URL"),
    ([{"type": "image", "image": data_url("image/png", JPEG)}], "parts.0.image.image", "is image/jpeg, not image/png"),
    ([{"type": "image", "image": data_url("image/png", b"bytes")}], "parts.0.image.image", "is not image/png"),
    ([{"type": "image", "image": data_url("text/html", b"<p>")}], "parts.0.image.image", "is text/html, not an image"),
    ([{"type": "image", "image": "https://example.com/a.png", "detail": "most"}], "parts.0.image.detail", "'low'"),
    ([{"type": "audio", "format": "mp3"}], "parts.0.audio", "needs either data or url"),
    (
        [{"type": "audio", "data": b64(MP3), "url": "https://example.com/a", "format": "mp3"}],
        "parts.0.audio",
        "needs either data or url",
    ),
    ([{"type": "audio", "data": "not base64!", "format": "mp3"}], "parts.0.audio.data", "must be base64"),
    ([{"type": "audio", "data": "", "format": "mp3"}], "parts.0.audio.data", "must not be empty"),
    ([{"type": "audio", "data": "AA==AAAA", "format": "mp3"}], "parts.0.audio.data", "data after padding"),
    ([{"type": "audio", "data": b64(WAV), "format": "mp3"}], "parts.0.audio", "data is audio/wav, not audio/mpeg"),
    ([{"type": "audio", "data": b64(b"RIFFbeat"), "format": "wav"}], "parts.0.audio", "data is not audio/wav"),
    ([{"type": "audio", "data": b64(MP3), "format": "flac"}], "parts.0.audio.format", "'wav'"),
    ([{"type": "file"}], "parts.0.file", "needs either file_data or file_url"),
    ([{"type": "file", "file_id": "file-1"}], "parts.0.file", "file_id is not supported"),
    ([{"type": "file", "file_data": "not base64!"}], "parts.0.file.file_data", "must be base64"),
    (
        [{"type": "file", "file_data": b64(PNG), "filename": "a.pdf"}],
        "parts.0.file",
        "file_data is image/png, not application/pdf",
    ),
    (
        [{"type": "file", "file_data": b64(b"\xff\xfe"), "mime_type": "text/plain"}],
        "parts.0.file",
        "file_data is of type text/plain and must be UTF-8",
    ),
    (
        [{"type": "file", "file_data": b64(b"a"), "mime_type": "text/plain\r\nX-Evil: 1"}],
        "parts.0.file.mime_type",
        "must be a media type",
    ),
    ([{"type": "file", "file_url": "ftp://example.com/a"}], "parts.0.file.file_url", "must be an https URL"),
]


@pytest.mark.parametrize(("part", "expected"), GOOD)
def test_a_part_becomes_what_models_take(part: dict[str, JsonValue], expected: Part) -> None:
    assert sent_parts(ANY.validate_python([TEXT, part])) == (TextPart("look at this"), expected)


@pytest.mark.parametrize(("content", "field", "reason"), BAD)
def test_what_no_model_could_take_is_refused_by_its_field(content: JsonValue, field: str, reason: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ANY.validate_python(content)
    (problem,) = caught.value.errors()
    assert ".".join(map(str, problem["loc"])) == field
    assert reason in problem["msg"]


@pytest.mark.parametrize("content", [BAD[6][0], BAD[9][0], BAD[18][0], BAD[24][0]])
async def test_every_door_refuses_it(content: JsonValue, user: Person, declare: Declare) -> None:
    agent = await declare("plain")
    chat_id = await open_chat(user, agent)
    asked: dict[str, JsonValue] = {
        f"/chats/{chat_id}/messages": {"content": content},
        f"/chats/{chat_id}/messages/stream": {"content": content},
        f"/agents/{agent}/invoke": {"message": content},
        f"/agents/{agent}/chats/batch": {"inputs": [{"message": content}]},
    }
    for url, body in asked.items():
        answer = await user.http.post(url, json=body)
        assert answer.status_code == 422, url
        (problem,) = answer.json()["detail"]
        assert problem["loc"][1] in ("content", "message", "inputs"), json.dumps(problem)
        assert "parts" not in problem["loc"][:-1], "that is no field of the request"

"""Images, recordings and files: what goes over the wire to each provider, and what each does not take."""

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest

from sinas_server.backends.llm import LanguageModel, MediaPart, ProviderConfig, TextPart, UserMessage
from sinas_server.backends.llm.media import refusal
from tests.backends.llm.asking import KEY, ask, collect, failure
from tests.fakes.llm_server import FakeLLM, Provider
from tests.media import MP3, OGG, PDF, PNG, WAV, b64, data_url

IMAGE, ANY_PDF = "https://example.com/cat.png", "https://example.com/bill.pdf"
MEDIA = {
    "image": MediaPart("image", "image/png", PNG, detail="low"),
    "image url": MediaPart("image", "image/png", url=IMAGE),
    "image as a file": MediaPart("file", "image/png", PNG, filename="cat.png"),
    "image as a file by url": MediaPart("file", "image/png", url=IMAGE),
    "photo of a camera": MediaPart("image", "image/tiff", PNG),
    "wav": MediaPart("audio", "audio/wav", WAV),
    "mp3": MediaPart("audio", "audio/mpeg", MP3),
    "ogg": MediaPart("audio", "audio/ogg", OGG),
    "audio url": MediaPart("audio", "audio/wav", url="https://example.com/a.wav"),
    "pdf": MediaPart("file", "application/pdf", PDF, filename="bill.pdf"),
    "pdf url": MediaPart("file", "application/pdf", url=ANY_PDF),
    "text": MediaPart("file", "text/csv", b"a;b", filename="orders.csv"),
    "text url": MediaPart("file", "text/csv", url="https://example.com/orders.csv"),
    "json": MediaPart("file", "application/json", b"[1]", filename="a.json"),
    "zip": MediaPart("file", "application/zip", PNG),
}
INLINE = [
    {"type": "text", "text": '<file name="orders.csv" type="text/csv">\na;b\n</file>'},
    {"type": "text", "text": '<file name="a.json" type="application/json">\n[1]\n</file>'},
]
TEXTS = {"text": INLINE[0], "json": INLINE[1]}


def _openai_image(url: str, **more: str) -> object:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def _anthropic(kind: str, source: Mapping[str, str]) -> object:
    return {"type": kind, "source": source}


ON_THE_WIRE: dict[Provider, dict[str, object]] = {
    "openai": {
        **TEXTS,
        "image": _openai_image(data_url("image/png", PNG), detail="low"),
        "image as a file": _openai_image(data_url("image/png", PNG)),
        "image url": _openai_image(IMAGE),
        "image as a file by url": _openai_image(IMAGE),
        "wav": {"type": "input_audio", "input_audio": {"data": b64(WAV), "format": "wav"}},
        "mp3": {"type": "input_audio", "input_audio": {"data": b64(MP3), "format": "mp3"}},
        "pdf": {"type": "file", "file": {"file_data": data_url("application/pdf", PDF), "filename": "filename.pdf"}},
    },
    "anthropic": {
        **TEXTS,
        "image": _anthropic("image", {"type": "base64", "media_type": "image/png", "data": b64(PNG)}),
        "image as a file": _anthropic("image", {"type": "base64", "media_type": "image/png", "data": b64(PNG)}),
        "image url": _anthropic("image", {"type": "url", "url": IMAGE}),
        "image as a file by url": _anthropic("image", {"type": "url", "url": IMAGE}),
        "pdf": _anthropic("document", {"type": "base64", "media_type": "application/pdf", "data": b64(PDF)}),
        "pdf url": _anthropic("document", {"type": "url", "url": ANY_PDF}),
    },
    "mistral": {
        **TEXTS,
        "image": _openai_image(data_url("image/png", PNG), detail="low"),
        "image as a file": _openai_image(data_url("image/png", PNG)),
        "image url": _openai_image(IMAGE),
        "image as a file by url": _openai_image(IMAGE),
        "pdf": {"type": "document_url", "document_url": data_url("application/pdf", PDF)},
        "pdf url": {"type": "document_url", "document_url": ANY_PDF},
    },
    "ollama": {
        **TEXTS,
        "image": _openai_image(data_url("image/png", PNG), detail="low"),
        "image as a file": _openai_image(data_url("image/png", PNG)),
    },
}
"""What of `MEDIA` each provider takes, and how it is written; the rest is refused before anything is sent."""


@pytest.mark.parametrize("name", MEDIA)
async def test_media_is_sent_or_refused(fake: FakeLLM, model: LanguageModel, provider: Provider, name: str) -> None:
    part = MEDIA[name]
    request = ask(UserMessage((TextPart("What is this?"), part)))
    expected = ON_THE_WIRE[provider].get(name)
    if expected is not None:
        await collect(model, request)
        assert fake.requests[0].body["messages"][-1]["content"][1] == expected
    else:
        error = await failure(model, request)
        assert f"{provider} does not take {part.kind} content of type {part.media_type}" in str(error)
        assert not error.retryable
        assert fake.requests == []


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (MediaPart("file", "text/csv", b"\xff", filename="a.csv"), "a.csv .* is not UTF-8"),
        (MediaPart("image", "image/png"), "neither data nor a URL"),
    ],
)
async def test_media_that_cannot_be_read(model: LanguageModel, part: MediaPart, reason: str) -> None:
    assert re.search(reason, str(await failure(model, ask(UserMessage((part,))))))


OFFICIAL: list[tuple[str, str, set[str]]] = [
    ("openai", "gpt-4o", {"image", "pdf"}),
    ("openai", "gpt-5-mini", {"image", "pdf"}),
    ("openai", "gpt-4o-audio-preview", {"wav", "mp3"}),
    ("openai", "gpt-audio", {"wav", "mp3"}),
    ("openai", "gpt-4-turbo", {"image", "pdf"}),
    ("openai", "gpt-4", set()),
    ("openai", "gpt-4-0613", set()),
    ("openai", "gpt-3.5-turbo", set()),
    ("openai", "o3-mini", set()),
    ("openai", "o3", {"image", "pdf"}),
    ("openai", "whatever-comes-next", {"image", "pdf", "wav", "mp3"}),
    ("anthropic", "claude-sonnet-4-5", {"image", "pdf"}),
    ("anthropic", "claude-3-haiku-20240307", {"image", "pdf"}),
    ("anthropic", "claude-2.1", set()),
    ("anthropic", "claude-instant-1.2", set()),
    ("mistral", "pixtral-large-latest", {"image", "pdf"}),
    ("mistral", "mistral-small-2503", {"image", "pdf"}),
    ("mistral", "mistral-large-2411", set()),
    ("mistral", "codestral-latest", set()),
    ("mistral", "open-mistral-nemo", set()),
    ("ollama", "llama3.2-vision:11b", {"image"}),
    ("ollama", "qwen2.5vl", {"image"}),
    ("ollama", "gemma3:4b", {"image"}),
    ("ollama", "llama3.1:8b", set()),
    ("ollama", "mistral", set()),
]


@pytest.mark.parametrize(("kind", "name", "taken"), OFFICIAL)
def test_families_of_models(kind: Provider, name: str, taken: set[str]) -> None:
    config = ProviderConfig(kind, KEY)
    asked = {part: refusal(config, name, MEDIA[part]) for part in ("image", "pdf", "wav", "mp3")}
    assert {part for part, reason in asked.items() if reason is None} == taken
    assert refusal(config, name, MEDIA["text"]) is None
    for reason in filter(None, asked.values()):
        assert kind in reason
        assert "it takes text, text files" in reason or reason.endswith("it takes text and text files")


def test_a_refusal_names_the_model_where_others_of_its_provider_take_more() -> None:
    assert refusal(ProviderConfig("mistral", KEY), "codestral-latest", MEDIA["image"]) == (
        "mistral's model codestral-latest does not take image content of type image/png inline; "
        "it takes text and text files"
    )
    assert refusal(ProviderConfig("anthropic", KEY), "claude-sonnet-4-5", MEDIA["wav"]) == (
        "anthropic does not take audio content of type audio/wav inline; it takes text, text files, "
        "GIF, JPEG, PDF, PNG, WEBP, and by URL GIF, JPEG, PDF, PNG, WEBP"
    )


def test_servers_that_speak_openai_call_their_models_as_they_like() -> None:
    config = ProviderConfig("openai", KEY, "https://llm.example.com/v1")
    assert refusal(config, "gpt-3.5-turbo", MEDIA["wav"]) is None
    assert refusal(replace(config, endpoint="https://api.openai.com/v1"), "gpt-3.5-turbo", MEDIA["wav"]) is not None


def test_openais_newer_api_takes_documents_by_address_and_no_recordings() -> None:
    config = ProviderConfig("openai", KEY, options={"api": "responses"})
    asked = {name for name, part in MEDIA.items() if refusal(config, "gpt-5-mini", part) is None}
    assert asked == set(ON_THE_WIRE["anthropic"])


def test_the_offline_model_takes_everything() -> None:
    assert all(refusal(ProviderConfig("scripted"), "scripted", part) is None for part in MEDIA.values())

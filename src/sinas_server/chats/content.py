"""What a message may consist of: text, images, audio and files, as clients send them and as models take them."""

import codecs
import json
import mimetypes
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    model_validator,
)

from sinas_server.backends.llm import MediaPart, Part, TextPart
from sinas_server.kit.media import check_type, decoded, decoded_size, head_of, is_text, plain

AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "m4a": "audio/mp4", "ogg": "audio/ogg"}
DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[^;,]*)*;base64,(?P<data>.*)", re.DOTALL)
MAX_TEXT = 1_000_000
ATTACHMENT = "attachment"
"""Where a stored part says which of the chat's attachments it shows."""


def _base64(value: str) -> str:
    for _ in decoded(value):
        pass
    return value


def _address(value: str) -> str:
    if urlsplit(value).scheme not in ("https", "http") or not urlsplit(value).hostname:
        raise ValueError("must be an https URL")
    return value


def _image(value: str) -> str:
    if not value.startswith("data:"):
        return _address(value)
    found = DATA_URL.fullmatch(value)
    if found is None:
        raise ValueError("must be a data URL like data:image/png;base64,...")
    media_type = plain(found["type"])
    if not media_type.startswith("image/"):
        raise ValueError(f"is {media_type}, not an image")
    check_type(media_type, head_of(_base64(found["data"])))
    return value


def _check(media_type: str, data: str) -> None:
    """Raise `ValueError` where bytes (base64) are not of their type."""
    check_type(media_type, head_of(data))
    if is_text(media_type):
        reader = codecs.getincrementaldecoder("utf-8")()
        try:
            for piece in decoded(data):
                reader.decode(piece)
            reader.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise ValueError(f"is of type {media_type} and must be UTF-8: {error.reason}") from error


def _file(value: str) -> str:
    found = DATA_URL.fullmatch(value)
    _base64(found["data"] if found else value)
    return value


def _media_type(value: str | None) -> str | None:
    if not value:  # what browsers say of files they do not know
        return None
    if re.fullmatch(r"[\w.+-]+/[\w.+-]+(\s*;[^\r\n]*)?", value, re.ASCII) is None:
        raise ValueError("must be a media type like application/pdf")
    return plain(value)


def _fits(field: str, media_type: str, data: str) -> None:
    try:
        _check(media_type, data)
    except ValueError as error:
        raise ValueError(f"{field} {error}") from error


Base64 = Annotated[str, AfterValidator(_base64)]
Address = Annotated[str, AfterValidator(_address)]


class _ContentPart(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextContentPart(_ContentPart):
    """Text."""

    type: Literal["text"] = Field(description="`text`.")
    text: str = Field(max_length=MAX_TEXT, description="The text.")


class ImageContentPart(_ContentPart):
    """An image."""

    type: Literal["image"] = Field(description="`image`.")
    image: Annotated[str, AfterValidator(_image)] = Field(description="An https or data URL.")
    detail: Literal["low", "high", "auto"] | None = Field(default=None, description="How closely to look.")


class AudioContentPart(_ContentPart):
    """A recording: `data` or `url`."""

    type: Literal["audio"] = Field(description="`audio`.")
    data: Base64 | None = Field(default=None, description="The recording in base64.")
    url: Address | None = Field(default=None, description="Where it can be fetched.")
    format: Literal["wav", "mp3", "m4a", "ogg"] = Field(description="Its format.")

    @model_validator(mode="after")
    def _is_one(self) -> "AudioContentPart":
        if (self.data is None) == (self.url is None):
            raise ValueError("needs either data or url")
        if self.data is not None:
            _fits("data", AUDIO_TYPES[self.format], self.data)
        return self


class FileContentPart(_ContentPart):
    """A file: `file_data` or `file_url`."""

    type: Literal["file"] = Field(description="`file`.")
    file_data: Annotated[str, AfterValidator(_file)] | None = Field(
        default=None, description="The file in base64, or as a data URL."
    )
    file_url: Address | None = Field(default=None, description="Where it can be fetched.")
    file_id: str | None = Field(default=None, description="A file kept by a provider; not supported.")
    filename: str | None = Field(default=None, max_length=255, description="Its name.")
    mime_type: Annotated[str | None, AfterValidator(_media_type)] = Field(
        default=None, max_length=255, description="Its media type."
    )

    @model_validator(mode="after")
    def _is_one(self) -> "FileContentPart":
        if self.file_id is not None and self.file_data is None and self.file_url is None:
            raise ValueError("file_id is not supported: send file_data or file_url")
        if (self.file_data is None) == (self.file_url is None):
            raise ValueError("needs either file_data or file_url")
        if self.file_data is not None:
            media, data = media_of(self)
            _fits("file_data", media.media_type, data or "")
        return self


AnyPart = TextContentPart | ImageContentPart | AudioContentPart | FileContentPart
ContentPart = Annotated[AnyPart, Field(discriminator="type")]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[ContentPart], Field(min_length=1), Tag("parts")],
    Discriminator(lambda given: "text" if isinstance(given, str) else "parts"),
]


@dataclass(frozen=True)
class Kept:
    """Content as a message keeps it: the text, or parts, whose bytes are attachments of the chat."""

    text: str | None
    parts: list[JsonValue] | None = None


def texts(content: Content) -> Kept | None:
    """Content as a message keeps it where nothing is attached; None where something is."""
    if isinstance(content, str):
        return Kept(content)
    if all(isinstance(part, TextContentPart) for part in content):
        return Kept(None, [part.model_dump(mode="json") for part in content])
    return None


def media_of(part: ImageContentPart | AudioContentPart | FileContentPart) -> tuple[MediaPart, str | None]:
    """What a part shows, and its bytes in base64 unless it is an address."""
    if isinstance(part, ImageContentPart):
        found = DATA_URL.fullmatch(part.image)
        if found:
            return _sized(MediaPart("image", plain(found["type"]), detail=part.detail), found["data"])
        return MediaPart("image", _guess(part.image, "image/jpeg"), url=part.image, detail=part.detail), None
    if isinstance(part, AudioContentPart):
        media = MediaPart("audio", AUDIO_TYPES[part.format], url=part.url)
        return (media, None) if part.data is None else _sized(media, part.data)
    found = DATA_URL.fullmatch(part.file_data or "")
    name = part.filename or (urlsplit(part.file_url).path.rpartition("/")[2] if part.file_url else None)
    guessed = found["type"] if found else _guess(name or "", "application/octet-stream")
    media = MediaPart("file", plain(part.mime_type or guessed), url=part.file_url, filename=name)
    return (media, None) if part.file_data is None else _sized(media, found["data"] if found else part.file_data)


def _sized(media: MediaPart, data: str) -> tuple[MediaPart, str]:
    return replace(media, size=decoded_size(data)), data


def field_of(part: AnyPart) -> str:
    """The field that holds what a part shows."""
    if isinstance(part, AudioContentPart):
        return "url" if part.data is None else "data"
    if isinstance(part, FileContentPart):
        return "file_url" if part.file_data is None else "file_data"
    return part.type


def cleaned(text: str) -> str:
    """Text that can be stored: no NUL, no lone surrogates."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def text_in(text: str | None, parts: list[JsonValue] | None) -> str:
    """The text of content: that of its text parts, one line after the other."""
    if parts is None:
        return text or ""
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and part.get("type") == "text")


def with_text(parts: list[JsonValue] | None, text: str) -> tuple[str | None, list[JsonValue] | None]:
    """Content, as a message keeps it, with this text instead of its own; what is no text stays."""
    if parts is None:
        return text, None
    others = [part for part in parts if not (isinstance(part, dict) and part.get("type") == "text")]
    return None, [{"type": "text", "text": text}, *others]


def for_model(text: str | None, parts: list[JsonValue] | None) -> tuple[Part, ...]:
    """Stored content as models take it; of attachments the key of their bytes."""
    if parts is None:
        return (TextPart(text or ""),)
    return tuple(map(_stored_part, cast(Iterable[dict[str, JsonValue]], parts)))


_KNOWN: TypeAdapter[AnyPart] = TypeAdapter(ContentPart)


def _stored_part(part: dict[str, JsonValue]) -> Part:
    held = cast(dict[str, str], part.get(ATTACHMENT))
    if not held:
        known = _KNOWN.validate_python(part)
        return TextPart(known.text) if isinstance(known, TextContentPart) else media_of(known)[0]
    return MediaPart(
        cast(Literal["image", "audio", "file"], part["type"]),
        held["media_type"],
        blob=held["blob"],
        size=int(held["size"]),
        filename=held.get("filename"),
        detail=cast(Literal["low", "high", "auto"] | None, part.get("detail")),
    )


def sent_parts(content: Content) -> tuple[Part, ...]:
    """Content as models take it, with the bytes that were sent. Raises `ValueError` for an address that is none."""
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(TextPart(part.text) if isinstance(part, TextContentPart) else _sent(part) for part in content)


def _sent(part: ImageContentPart | AudioContentPart | FileContentPart) -> MediaPart:
    media, data = media_of(part)
    if media.url is not None and urlsplit(media.url).scheme != "https":
        raise ValueError(f"{field_of(part)} must be an https URL")
    return media if data is None else replace(media, data=b"".join(decoded(data)))


def _guess(name: str, default: str) -> str:
    return mimetypes.guess_type(urlsplit(name).path)[0] or default


def as_text(parts: list[JsonValue]) -> str:
    """Parts as clients read them: a JSON text."""
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))

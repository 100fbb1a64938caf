"""What a message may consist of: text, images, audio and files, as clients send them and as models take them."""

import binascii
import json
import mimetypes
import re
from base64 import b64decode
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, model_validator

from sinas_server.backends.llm import MediaPart, Part, TextPart

AUDIO_TYPES = {"wav": "audio/wav", "mp3": "audio/mpeg", "m4a": "audio/mp4", "ogg": "audio/ogg"}
DATA_URL = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[^;,]*)*;base64,(?P<data>.*)", re.DOTALL)
MAX_TEXT = 1_000_000


def _base64(value: str) -> str:
    try:
        b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"must be base64: {error}") from error
    return value


def _address(value: str) -> str:
    if urlsplit(value).scheme != "https" or not urlsplit(value).hostname:
        raise ValueError("must be an https URL")
    return value


def _address_or_data(value: str) -> str:
    if not value.startswith("data:"):
        return _address(value)
    found = DATA_URL.fullmatch(value)
    if found is None:
        raise ValueError("must be a data URL like data:image/png;base64,...")
    _base64(found["data"])
    return value


Base64 = Annotated[str, AfterValidator(_base64)]
Address = Annotated[str, AfterValidator(_address)]
AddressOrData = Annotated[str, AfterValidator(_address_or_data)]


class _ContentPart(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextContentPart(_ContentPart):
    """Text."""

    type: Literal["text"] = Field(description="`text`.")
    text: str = Field(max_length=MAX_TEXT, description="The text.")


class ImageContentPart(_ContentPart):
    """An image."""

    type: Literal["image"] = Field(description="`image`.")
    image: AddressOrData = Field(description="An https or data URL.")
    detail: Literal["low", "high", "auto"] | None = Field(default=None, description="How closely to look.")


class AudioContentPart(_ContentPart):
    """A recording: `data` or `url`."""

    type: Literal["audio"] = Field(description="`audio`.")
    data: Base64 | None = Field(default=None, description="The recording in base64.")
    url: Address | None = Field(default=None, description="Where it can be fetched.")
    format: Literal["wav", "mp3", "m4a", "ogg"] = Field(description="Its format.")

    @model_validator(mode="after")
    def _has_one(self) -> "AudioContentPart":
        if (self.data is None) == (self.url is None):
            raise ValueError("needs either data or url")
        return self


class FileContentPart(_ContentPart):
    """A file: `file_data` or `file_url`."""

    type: Literal["file"] = Field(description="`file`.")
    file_data: str | None = Field(default=None, description="The file in base64, or as a data URL.")
    file_url: Address | None = Field(default=None, description="Where it can be fetched.")
    file_id: str | None = Field(default=None, description="A file kept by a provider; not supported.")
    filename: str | None = Field(default=None, max_length=255, description="Its name.")
    mime_type: str | None = Field(default=None, max_length=255, description="Its media type.")

    @model_validator(mode="after")
    def _has_one(self) -> "FileContentPart":
        if self.file_id is not None and self.file_data is None and self.file_url is None:
            raise ValueError("file_id is not supported: send file_data or file_url")
        if (self.file_data is None) == (self.file_url is None):
            raise ValueError("needs either file_data or file_url")
        if self.file_data is not None:
            found = DATA_URL.fullmatch(self.file_data)
            _base64(found["data"] if found else self.file_data)
        return self


ContentPart = Annotated[
    TextContentPart | ImageContentPart | AudioContentPart | FileContentPart, Field(discriminator="type")
]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Content = Text | Annotated[list[ContentPart], Field(min_length=1)]


def stored(content: Content) -> tuple[str | None, list[JsonValue] | None]:
    """Content as a message keeps it: the text, or the parts."""
    if isinstance(content, str):
        return content, None
    return None, [part.model_dump(mode="json", exclude_none=True) for part in content]


def shown(text: str | None, parts: list[JsonValue] | None) -> str | None:
    """Content as clients read it: parts are a JSON text."""
    return text if parts is None else json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


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
    """Content as models take it."""
    if parts is None:
        return (TextPart(text or ""),)
    known: TypeAdapter[list[ContentPart]] = TypeAdapter(list[ContentPart])
    return tuple(_part(part) for part in known.validate_python(parts))


def _part(part: TextContentPart | ImageContentPart | AudioContentPart | FileContentPart) -> Part:
    if isinstance(part, TextContentPart):
        return TextPart(part.text)
    if isinstance(part, ImageContentPart):
        found = DATA_URL.fullmatch(part.image)
        if found:
            return MediaPart("image", found["type"], data_base64=found["data"], detail=part.detail)
        return MediaPart("image", _guess(part.image, "image/jpeg"), url=part.image, detail=part.detail)
    if isinstance(part, AudioContentPart):
        return MediaPart("audio", AUDIO_TYPES[part.format], data_base64=part.data, url=part.url)
    found = DATA_URL.fullmatch(part.file_data or "")
    name = part.filename or (urlsplit(part.file_url).path.rpartition("/")[2] if part.file_url else None)
    guessed = found["type"] if found else _guess(name or "", "application/octet-stream")
    data = found["data"] if found else part.file_data
    return MediaPart("file", part.mime_type or guessed, data_base64=data, url=part.file_url, filename=name)


def _guess(name: str, default: str) -> str:
    return mimetypes.guess_type(urlsplit(name).path)[0] or default

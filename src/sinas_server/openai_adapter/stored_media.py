"""The messages of stored responses without the bytes they hold, and with them again."""

import base64
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import cast

from pydantic import JsonValue, TypeAdapter

from sinas_server.backends.blobs import BlobMissingError
from sinas_server.kernel import blobs
from sinas_server.kernel.errors import GoneError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.media import decoded, decoded_size
from sinas_server.openai_adapter.request import ChatMessage

Json = dict[str, JsonValue]
MESSAGES: TypeAdapter[list[ChatMessage]] = TypeAdapter(list[ChatMessage])
PLACES: Mapping[str, tuple[str, str]] = {
    "image_url": ("image_url", "url"),
    "image": ("source", "data"),
    "input_audio": ("input_audio", "data"),
    "file": ("file", "file_data"),
}
"""Type of part → where it holds base64, or a data URL."""


def _places(messages: Sequence[JsonValue]) -> Iterator[tuple[Json, str]]:
    """Everything that may hold bytes: an object, and its key."""
    for message in cast(Sequence[Json], messages):
        content = message.get("content")
        for part in cast(list[Json], content) if isinstance(content, list) else ():
            holder, key = PLACES.get(str(part["type"]), ("", ""))
            if holder and key in cast(Json, part[holder]):
                yield cast(Json, part[holder]), key


async def without_bytes(runtime: Runtime, messages: Sequence[ChatMessage]) -> tuple[list[JsonValue], set[str]]:
    """Messages as they are stored, and the keys of the blobs that have their bytes now."""
    dumped: list[JsonValue] = [message.model_dump(mode="json", exclude_none=True) for message in messages]
    keys: set[str] = set()
    for place, key in _places(dumped):
        prefix, data = _split(str(place[key]))
        if data is None:
            continue
        try:
            blob = await blobs.keep(runtime, _pieces(data), decoded_size(data))
        except ValueError:  # of a message that no model is shown, since others were refused
            place[key] = ""
            continue
        place[key] = {"blob": blob.key, "prefix": prefix}
        keys.add(blob.key)
    return dumped, keys


def _split(value: str) -> tuple[str, str | None]:
    """What stands before base64, and that; None for an address."""
    if value.startswith("https:"):
        return "", None
    head, comma, data = value.partition(",")
    return (f"{head},", data) if comma else ("", value)


async def _pieces(data: str) -> AsyncIterator[bytes]:
    for piece in decoded(data):
        yield piece


async def with_bytes(runtime: Runtime, messages: Sequence[JsonValue]) -> list[ChatMessage]:
    """Stored messages as they were sent. Raises `GoneError` where bytes were lost."""
    for place, key in _places(messages):
        held = place[key]
        if isinstance(held, dict):
            place[key] = f"{held['prefix']}{await _encoded(runtime, str(held['blob']))}"
    return MESSAGES.validate_python(messages)


async def _encoded(runtime: Runtime, key: str) -> str:
    try:
        return base64.b64encode(await blobs.whole(runtime, key)).decode()
    except BlobMissingError as error:
        raise GoneError("the bytes of what was sent before are gone from the store") from error

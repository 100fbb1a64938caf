"""Giving a model the images, recordings and files of a conversation, as far as it takes them."""

from collections.abc import Sequence
from dataclasses import replace

from sinas_server.backends.blobs import BlobMissingError
from sinas_server.backends.llm import MediaPart, Message, ModelRequest, Part, ProviderError, TextPart, UserMessage
from sinas_server.backends.llm.media import refusal
from sinas_server.kernel import blobs
from sinas_server.kernel.runtime import Runtime
from sinas_server.providers.resolve import Resolved


def takes_last(provider: Resolved, history: Sequence[Message]) -> bool:
    """Whether a model takes all of what the user said last."""
    last = next((message for message in reversed(history) if isinstance(message, UserMessage)), None)
    parts = last.parts if last else ()
    return not any(isinstance(part, MediaPart) and _refused(provider, part) for part in parts)


def readable(provider: Resolved, history: Sequence[Message]) -> list[Message]:
    """A conversation as a model takes it: what it cannot read of earlier messages is only named to it.

    Of the user's last message nothing is left out: a model that does not take it refuses it.
    """
    last = max((index for index, message in enumerate(history) if isinstance(message, UserMessage)), default=-1)
    return [
        replace(message, parts=tuple(_named(provider, part) for part in message.parts))
        if isinstance(message, UserMessage) and index != last
        else message
        for index, message in enumerate(history)
    ]


def _refused(provider: Resolved, part: MediaPart) -> bool:
    return refusal(provider.config, provider.model, part) is not None


def _named(provider: Resolved, part: Part) -> Part:
    if isinstance(part, TextPart) or not _refused(provider, part):
        return part
    name = f" '{part.filename}'" if part.filename else ""
    return TextPart(f"[{part.kind}{name} of type {part.media_type}, which this model cannot read]")


async def supplied(runtime: Runtime, request: ModelRequest) -> ModelRequest:
    """The request with the bytes of every blob it names. Raises `ProviderError` for one that is gone."""
    if not any(_lacks(message) for message in request.messages):
        return request
    messages = [await _supplied(runtime, message) if _lacks(message) else message for message in request.messages]
    return replace(request, messages=tuple(messages))


def _lacks(message: Message) -> bool:
    parts = message.parts if isinstance(message, UserMessage) else ()
    return any(isinstance(part, MediaPart) and part.blob is not None for part in parts)


async def _supplied(runtime: Runtime, message: Message) -> Message:
    if not isinstance(message, UserMessage):
        return message
    return replace(message, parts=tuple([await _with_bytes(runtime, part) for part in message.parts]))


async def _with_bytes(runtime: Runtime, part: Part) -> Part:
    if isinstance(part, TextPart) or part.blob is None:
        return part
    try:
        return replace(part, data=await blobs.whole(runtime, part.blob), blob=None)
    except BlobMissingError as error:
        raise ProviderError(f"the bytes of the {part.kind} {part.filename or ''} are gone from the store") from error

"""The bytes of messages: kept as blobs when they arrive, held by the chat, given to the model when it is asked.

A stored part says which attachment of its chat it shows (`attachment`: `id`, `blob`, `media_type`, `size`, `filename`)
and holds no bytes. Clients read such a part with an address in place of the bytes.
"""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from uuid import UUID, uuid4

from pydantic import JsonValue
from sqlalchemy import (
    ColumnElement,
    FromClause,
    Insert,
    Uuid,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    true,
)

from sinas_server.agents.kind import AgentSpec
from sinas_server.backends.blobs import BlobTooLargeError
from sinas_server.backends.llm import MediaPart
from sinas_server.backends.llm.media import refusal
from sinas_server.chats.chat import chat_agent, may_talk
from sinas_server.chats.content import (
    ATTACHMENT,
    AnyPart,
    AudioContentPart,
    Content,
    FileContentPart,
    ImageContentPart,
    Kept,
    TextContentPart,
    field_of,
    media_of,
    texts,
)
from sinas_server.chats.tables import AttachmentRow, ChatRow, MessageRow
from sinas_server.kernel import blobs
from sinas_server.kernel.access import Caller
from sinas_server.kernel.blobs import Blob
from sinas_server.kernel.errors import InvalidError, Location, TooLargeError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.unit import Db
from sinas_server.kit.media import decoded
from sinas_server.providers.resolve import NoProviderError, resolve_now
from sinas_server.settings import Settings

_ID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PATH = re.compile(rf"/chats/(?P<chat>{_ID})/attachments/(?P<attachment>{_ID})(?:\?.*)?")
_MINE = (
    select(AttachmentRow.blob, AttachmentRow.media_type, AttachmentRow.filename)
    .join(ChatRow, ChatRow.id == AttachmentRow.chat_id)
    .where(
        AttachmentRow.id == bindparam("of_attachment", type_=Uuid),
        ChatRow.id == bindparam("of_chat", type_=Uuid),
        ChatRow.user_id == bindparam("of_user", type_=Uuid),
    )
)
MediaContentPart = ImageContentPart | AudioContentPart | FileContentPart


async def accept(runtime: Runtime, caller: Caller, agent: Resource[AgentSpec], content: Content, at: Location) -> Kept:
    """Content for a message to an agent, its bytes kept; nothing is looked up or written for texts.

    For whoever may chat with the agent, outside of transactions. `at`: where the content stands in the request. Raises
    422 and 413 naming what cannot be taken, also what the agent's model cannot read, and 503.
    """
    mere = texts(content)
    if mere is not None or isinstance(content, str):
        return mere or Kept(str(content))
    media = {index: part for index, part in enumerate(content) if not isinstance(part, TextContentPart)}
    found = {index: (part, *media_of(part)) for index, part in media.items()}
    _check_limits(runtime.settings, found, at)
    known: dict[int, MediaPart] = {
        index: await _own(runtime, caller, part, (*at, index)) or shown for index, (part, shown, _) in found.items()
    }
    await _check_model(runtime, agent, known, at)
    parts: list[JsonValue] = []
    for index, part in enumerate(content):
        if index in known and known[index].url is None:
            parts.append(await _kept(runtime, part, known[index], found[index][2]))
        else:
            parts.append(part.model_dump(mode="json", exclude_none=True))
    return Kept(None, parts)


async def accept_for(runtime: Runtime, caller: Caller, agent: tuple[str, str], content: Content, at: Location) -> Kept:
    """The same for an agent by namespace and name. Raises 404 and 403 too."""
    mere = texts(content)
    if mere is not None:
        return mere
    async with runtime.database.unit() as db:
        found = await chat_agent(db, caller, *agent)
    return await accept(runtime, caller, found, content, at)


Found = Mapping[int, tuple[MediaContentPart, MediaPart, str | None]]


def _check_limits(settings: Settings, found: Found, at: Location) -> None:
    if len(found) > settings.max_attachments:
        most = settings.max_attachments
        raise InvalidError([(at, f"must hold at most {most} images, recordings and files, not {len(found)}")])
    too_large = [
        ((*at, index, field_of(part)), f"has {shown.size} bytes; at most {settings.max_attachment_size} are taken")
        for index, (part, shown, _) in found.items()
        if shown.size > settings.max_attachment_size
    ]
    if too_large:
        raise TooLargeError(too_large)


async def _own(runtime: Runtime, caller: Caller, part: MediaContentPart, at: Location) -> MediaPart | None:
    """The attachment that a part names by the address under which its user has read it; None for other parts."""
    shown, _ = media_of(part)
    if shown.url is None:
        return None
    place = shown.url.removeprefix(runtime.settings.public_url)
    own = _PATH.fullmatch(place) if place != shown.url else None
    if own is None and shown.url.startswith("https:"):
        return None
    if own is None:
        raise InvalidError([((*at, field_of(part)), "must be an https URL")])
    named = {"of_attachment": UUID(own["attachment"]), "of_chat": UUID(own["chat"]), "of_user": caller.id}
    rows = await runtime.database.rows(_MINE, named) if may_talk(caller, caller.id) else ()
    blob = await blobs.use_again(runtime, rows[0].blob) if rows else None
    if blob is None:
        raise InvalidError([((*at, field_of(part)), "is no attachment of a chat of yours")])
    return replace(
        shown,
        url=None,
        media_type=rows[0].media_type,
        filename=rows[0].filename or shown.filename,
        blob=blob.key,
        size=blob.size,
    )


async def _check_model(
    runtime: Runtime, agent: Resource[AgentSpec], known: Mapping[int, MediaPart], at: Location
) -> None:
    """Raise `InvalidError` naming every part that the agent's model does not take."""
    if not known:
        return
    try:
        provider = await resolve_now(runtime.database, agent.spec.llm_provider_id, agent.spec.model)
    except NoProviderError:
        return  # there may be one when the agent answers
    refused = {index: refusal(provider.config, provider.model, part) for index, part in known.items()}
    problems: list[tuple[Location, str]] = [((*at, index), reason) for index, reason in refused.items() if reason]
    if problems:
        raise InvalidError(problems)


async def _kept(runtime: Runtime, part: AnyPart, shown: MediaPart, data: str | None) -> JsonValue:
    """A part as it is stored, once its bytes are."""
    if shown.blob is not None or data is None:
        blob = Blob(shown.blob or "", shown.size)
    else:
        try:
            blob = await blobs.keep(runtime, _pieces(data), runtime.settings.max_attachment_size)
        except BlobTooLargeError as error:
            raise TooLargeError([(("body",), str(error))]) from error
    held: dict[str, JsonValue] = {
        "id": str(uuid4()),
        "blob": blob.key,
        "media_type": shown.media_type,
        "size": blob.size,
    }
    if shown.filename:
        held["filename"] = shown.filename
    bytes_of: set[str] = {"image", "data", "url", "file_data", "file_url", "file_id"}
    return {**part.model_dump(mode="json", exclude_none=True, exclude=bytes_of), ATTACHMENT: held}


async def _pieces(data: str) -> AsyncIterator[bytes]:
    for piece in decoded(data):
        yield piece


def attaching(chats: FromClause, parts: ColumnElement[JsonValue]) -> Insert:
    """The statement that has chats hold what parts show. `chats`: their ids (`id`); `parts`: as messages keep them."""
    part = func.json_array_elements(parts).table_valued("value", name="part")
    held = part.c.value.op("->")(literal_column(f"'{ATTACHMENT}'"))

    def of(name: str) -> ColumnElement[str]:
        return held.op("->>")(literal_column(f"'{name}'"))

    rows = (
        select(of("id").cast(Uuid), chats.c.id, of("blob"), of("media_type"), of("filename"))
        .select_from(chats.join(part, true()))
        .where(held.is_not(None))
    )
    return insert(AttachmentRow).from_select(["id", "chat_id", "blob", "media_type", "filename"], rows)


_ATTACH = attaching(
    select(bindparam("of_chat", type_=Uuid).label("id")).subquery("chat"),
    bindparam("of_parts", type_=MessageRow.__table__.c.parts.type),
)


async def attach(db: Db, chat_id: UUID, parts: list[JsonValue] | None) -> None:
    """Have a chat hold what parts show, in the transaction that inserts their message."""
    if parts is not None:
        await (await db.connection()).execute(_ATTACH, {"of_chat": chat_id, "of_parts": parts})

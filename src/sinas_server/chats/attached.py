"""Reading attachments back: the addresses that messages show, and the bytes behind them."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, cast
from urllib.parse import quote, urlencode
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import JsonValue
from sqlalchemy import select

from sinas_server.backends.blobs import BlobMissingError
from sinas_server.chats.chat import alive, find_chat
from sinas_server.chats.content import ATTACHMENT, as_text
from sinas_server.chats.tables import AttachmentRow, ChatRow
from sinas_server.kernel import blobs
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import GoneError, NotFoundError, SinasError
from sinas_server.kernel.http import Run, get_caller, new_router
from sinas_server.kernel.security_schemes import SECURITY
from sinas_server.kernel.tables import BlobRow
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now
from sinas_server.kit.crypto import is_signed, sign
from sinas_server.settings import Settings

HOUR = 3600
"""An address works for one to two hours. It stays the same for one, so that browsers need not ask again."""
PURPOSE = "attachment"
ADDRESS_FIELDS: Mapping[str, str] = {"image": "image", "audio": "url", "file": "file_url"}
"""Type of part → where clients expect an address."""
SHOWN_INLINE = re.compile(r"image/(png|jpeg|gif|webp|avif)|audio/[a-z0-9]+")
"""What browsers show; the rest is downloaded."""
BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def shown(text: str | None, parts: list[JsonValue] | None, chat_id: UUID, settings: Settings) -> str | None:
    """Content as clients read it: parts are a JSON text, with an address for each attachment."""
    if parts is None:
        return text
    return as_text([_shown(cast(dict[str, JsonValue], part), chat_id, settings) for part in parts])


def _shown(part: Mapping[str, JsonValue], chat_id: UUID, settings: Settings) -> JsonValue:
    held = cast(Mapping[str, str] | None, part.get(ATTACHMENT))
    if held is None:
        return dict(part)
    kind = str(part["type"])
    told = {key: value for key, value in part.items() if key != ATTACHMENT}
    told[ADDRESS_FIELDS[kind]] = address(settings, chat_id, UUID(held["id"]))
    if kind == "file":
        told |= {"mime_type": held["media_type"], **({"filename": held["filename"]} if "filename" in held else {})}
    return told


def address(settings: Settings, chat_id: UUID, attachment_id: UUID) -> str:
    """Where an attachment can be read without other credentials for the next hour."""
    expires = str((int(now().timestamp()) // HOUR + 2) * HOUR)
    signature = sign(settings.signing_key, PURPOSE, str(chat_id), str(attachment_id), expires)
    query = urlencode({"expires": expires, "signature": signature})
    return f"{settings.public_url}/chats/{chat_id}/attachments/{attachment_id}?{query}"


async def _reader(
    chat_id: Annotated[UUID, Path(description="The chat's id.")],
    attachment_id: Annotated[UUID, Path(description="The attachment's id.")],
    request: Request,
    runtime: Run,
    expires: Annotated[
        int | None, Query(ge=0, le=2**40, description="Until when the address works; part of it.")
    ] = None,
    signature: Annotated[
        str | None, Query(max_length=64, description="What makes the address work; part of it.")
    ] = None,
) -> Caller | None:
    """Who asks; None for whoever has an address that still works. Raises `UnauthorizedError`."""
    if expires is not None and signature is not None and expires > now().timestamp():
        words = (str(chat_id), str(attachment_id), str(expires))
        if is_signed(signature, runtime.settings.signing_key, PURPOSE, *words):
            return None
    return await get_caller(request)


@dataclass(frozen=True)
class _Found:
    """An attachment and its blob."""

    key: str
    size: int
    media_type: str
    filename: str | None

    @property
    def headers(self) -> dict[str, str]:
        """What is told about the bytes: never to be taken for a page of ours."""
        inline = SHOWN_INLINE.fullmatch(self.media_type) is not None
        name = f"; filename*=UTF-8''{quote(self.filename, safe='')}" if self.filename else ""
        return {
            "ETag": f'"{self.key}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": f"private, max-age={HOUR}, immutable",
            "Content-Disposition": f"{'inline' if inline else 'attachment'}{name}",
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }


async def _find(db: Db, reader: Caller | None, chat_id: UUID, attachment_id: UUID) -> _Found:
    if reader is not None:
        await find_chat(db, reader, chat_id, "read")
    row = (
        await db.execute(
            select(BlobRow.key, BlobRow.size, AttachmentRow.media_type, AttachmentRow.filename)
            .join(AttachmentRow, AttachmentRow.blob == BlobRow.key)
            .join(ChatRow, ChatRow.id == AttachmentRow.chat_id)
            .where(AttachmentRow.id == attachment_id, ChatRow.id == chat_id, alive())
        )
    ).first()
    if row is None:
        raise NotFoundError("attachment not found")
    return _Found(*row)


class RangeError(SinasError):
    """There is nothing at the place that was asked for."""

    status, code = 416, "range_not_satisfiable"


def _range(asked: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of the one range asked for; None for everything. Raises `RangeError`."""
    found = RANGE.fullmatch(asked or "")
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
    if last and first and int(last) < int(first):
        return None  # not a range at all
    if start >= size or start > end:
        raise RangeError("the range lies behind the end", {"Content-Range": f"bytes */{size}"})
    return start, end


async def _get(
    chat_id: Annotated[UUID, Path(description="The chat's id.")],
    attachment_id: Annotated[UUID, Path(description="The attachment's id, as in the address that a message shows.")],
    runtime: Run,
    reader: Annotated[Caller | None, Depends(_reader)],
    if_none_match: Annotated[str | None, Header(description="An ETag: 304 if it is still that.")] = None,
    range_: Annotated[str | None, Header(alias="Range", description="One range of bytes.")] = None,
) -> Response:
    """For whoever may read the chat, and for whoever has an address that a message showed, until it expires."""
    async with runtime.database.unit() as db:
        found = await _find(db, reader, chat_id, attachment_id)
    headers = found.headers
    if if_none_match is not None and headers["ETag"] in if_none_match:
        return Response(status_code=304, headers=headers)
    part = _range(range_, found.size)
    start, end = part or (0, found.size - 1)
    pieces = blobs.read(runtime, found.key, start, end - start + 1)
    try:
        first = await anext(aiter(pieces), b"")
    except BlobMissingError as error:
        raise GoneError("the bytes of this attachment are gone from the store") from error
    headers["Content-Length"] = str(end - start + 1)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end}/{found.size}"
    return StreamingResponse(
        _rest(first, pieces), 206 if part else 200, headers=headers, media_type=_served_as(found.media_type)
    )


def _served_as(media_type: str) -> str:
    return f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type


async def _rest(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in pieces:
        yield piece


def _attached_router() -> APIRouter:
    router = new_router("/chats", "chats")
    router.get(
        "/{chat_id}/attachments/{attachment_id}",
        summary="Read an attachment of a message",
        name="attachment",
        response_class=Response,
        openapi_extra={"security": SECURITY},
        responses={
            200: {"content": BYTES, "description": "The bytes, under their own media type."},
            206: {"content": BYTES, "description": "The range asked for."},
            304: {"description": "Unchanged."},
            410: {"description": "The bytes were lost."},
            416: {"description": "The range lies behind the end."},
        },
    )(_get)
    return router


attached_router = _attached_router()

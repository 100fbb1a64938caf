"""Telling an answer over HTTP, whole or as events: the one place for chat completions and responses."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import JsonValue

from sinas_server.chats.start import Started
from sinas_server.kernel.http import JsonAnswer
from sinas_server.openai_adapter.agent_answer import HEADER
from sinas_server.openai_adapter.pieces import Final, Pieces, begun, whole
from sinas_server.openai_adapter.views import ErrorResponse

ERRORS: Mapping[int | str, dict[str, object]] = {
    "4XX": {"model": ErrorResponse, "description": "The request cannot be carried out."},
    "5XX": {"model": ErrorResponse, "description": "The provider, the agent or Sinas failed."},
}
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Writer(Protocol):
    """One of the forms in which an answer is told."""

    async def whole(self, final: Final) -> dict[str, JsonValue]:
        """The answer in one piece."""
        ...

    def stream(self, groups: Pieces) -> AsyncGenerator[bytes, None]:
        """The events that lead to it; closes `groups`."""
        ...


async def tell(writer: Writer, pieces: Pieces, started: Started | None, *, stream: bool) -> Response:
    """The response with an answer; `started`: the agent's turn it comes from. Raises what `pieces` begin with."""
    headers = {} if started is None else {HEADER: str(started.chat_id)}
    if not stream:
        return JsonAnswer(await writer.whole(await whole(pieces)), headers=headers)
    blocks = writer.stream(await begun(pieces))
    return StreamingResponse(blocks, media_type="text/event-stream", headers={**STREAM_HEADERS, **headers})

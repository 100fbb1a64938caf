"""Having something answered again, or saying it otherwise: what was there before stays, as another branch."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import or_

from sinas_server.chats.fork import go_on_after, message_in
from sinas_server.chats.once import IdempotencyKey, begin_in
from sinas_server.chats.path import last_of
from sinas_server.chats.record import last_turn
from sinas_server.chats.routes import EVENT_STREAM, ChatId, streamed
from sinas_server.chats.send import answered, finished
from sinas_server.chats.start import BUSY, Said, Started, accept_in, start_turn
from sinas_server.chats.tables import ChatRow, MessageRow, Status
from sinas_server.chats.views import EditRequest, SentResponse
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, InvalidError
from sinas_server.kernel.http import CurrentCaller, Run, new_router
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db

NOTHING_FAILED = (
    "The last turn did not fail and was not stopped: POST /chats/{chat_id}/messages/{message_id}/regenerate asks for "
    "another answer"
)
Begun = tuple[Started, bool]
"""A turn, and whether it was begun before with the same key."""


class AgainRequest(BaseModel):
    """How to answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_thinking: bool = Field(default=False, description="Stream the model's visible reasoning too.")


async def _at(
    chat_id: ChatId, message_id: Annotated[UUID, Path(description="The message's id, on whichever branch.")]
) -> tuple[UUID, UUID]:
    return chat_id, message_id


At = Annotated[tuple[UUID, UUID], Depends(_at)]


def _asked(what: str, at: tuple[UUID, ...], body: BaseModel) -> JsonValue:
    """What must be the same for the same `Idempotency-Key`."""
    return {"what": what, "at": [str(place) for place in at], "body": body.model_dump(mode="json")}


def _again(body: AgainRequest, message_id: UUID) -> Said:
    return Said(None, body.include_thinking, when_busy="reject", message_id=message_id)


async def _regenerating(
    at: tuple[UUID, UUID], body: AgainRequest | None, runtime: Runtime, caller: Caller, key: str | None
) -> Begun:
    body = body or AgainRequest()

    async def begin(db: Db, chat: ChatRow) -> Started:
        message = await message_in(db, chat, at[1])
        until = MessageRow.seq <= message.seq
        said = await last_of(db, chat.id, message.branch, until, MessageRow.role == "user")
        if said is None:
            raise ConflictError("The user said nothing before this message that could be answered again")
        await go_on_after(db, chat, said)
        return await start_turn(db, runtime, caller, chat, _again(body, said.id))

    return await begin_in(runtime, caller, at[0], key, _asked("regenerate", at, body), begin)


async def _regenerate(
    at: At,
    runtime: Run,
    caller: CurrentCaller,
    request: Request,
    body: AgainRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> SentResponse:
    """Another answer to what the user said there or last before. Waits for the turn; if the client goes away, the turn
    goes on."""
    started, _ = await _regenerating(at, body, runtime, caller, idempotency_key)
    return await answered(runtime, await finished(runtime, started.turn_id, request))


async def _regenerate_stream(
    at: At,
    runtime: Run,
    caller: CurrentCaller,
    body: AgainRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> StreamingResponse:
    """If the connection breaks, the turn goes on: read on at `/chats/{chat_id}/stream/{channel_id}`."""
    return await streamed(runtime, *await _regenerating(at, body, runtime, caller, idempotency_key))


async def _editing(
    at: tuple[UUID, UUID], body: EditRequest, runtime: Runtime, caller: Caller, key: str | None
) -> Begun:
    content = await accept_in(runtime, caller, at[0], body.content)

    async def begin(db: Db, chat: ChatRow) -> Started:
        message = await message_in(db, chat, at[1])
        if message.role != "user":
            raise InvalidError([(("path", "message_id"), "must be a message of the user; others cannot be edited")])
        await go_on_after(db, chat, await last_of(db, chat.id, message.branch, MessageRow.seq < message.seq))
        said = Said(content, body.include_thinking, when_busy="reject")
        return await start_turn(db, runtime, caller, chat, said)

    return await begin_in(runtime, caller, at[0], key, _asked("edit", at, body), begin)


async def _edit(
    at: At,
    body: EditRequest,
    runtime: Run,
    caller: CurrentCaller,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> SentResponse:
    """The agent answers the new message in the place of the old one. Waits for the turn; if the client goes away, the
    turn goes on."""
    started, _ = await _editing(at, body, runtime, caller, idempotency_key)
    return await answered(runtime, await finished(runtime, started.turn_id, request))


async def _edit_stream(
    at: At, body: EditRequest, runtime: Run, caller: CurrentCaller, idempotency_key: IdempotencyKey = None
) -> StreamingResponse:
    """If the connection breaks, the turn goes on: read on at `/chats/{chat_id}/stream/{channel_id}`."""
    return await streamed(runtime, *await _editing(at, body, runtime, caller, idempotency_key))


async def _retrying(
    chat_id: UUID, body: AgainRequest | None, runtime: Runtime, caller: Caller, key: str | None
) -> Begun:
    body = body or AgainRequest()

    async def begin(db: Db, chat: ChatRow) -> Started:
        turn = await last_turn(db, chat)
        if turn is None or turn.status not in (Status.FAILED, Status.CANCELLED):
            raise ConflictError(BUSY if turn is not None and turn.finished_at is None else NOTHING_FAILED)
        # All steps with their results stay; only an answer that was cut off is left behind, on its branch.
        is_step = or_(MessageRow.role != "assistant", MessageRow.tool_calls.is_not(None))
        await go_on_after(db, chat, await last_of(db, chat.id, chat.branch, is_step))
        return await start_turn(db, runtime, caller, chat, _again(body, turn.message_id))

    return await begin_in(runtime, caller, chat_id, key, _asked("retry", (chat_id,), body), begin)


async def _retry(
    chat_id: ChatId,
    runtime: Run,
    caller: CurrentCaller,
    request: Request,
    body: AgainRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> SentResponse:
    """The agent goes on after the last step of the turn that failed or was stopped: calls that have results are not
    made again. Waits for the turn; if the client goes away, the turn goes on."""
    started, _ = await _retrying(chat_id, body, runtime, caller, idempotency_key)
    return await answered(runtime, await finished(runtime, started.turn_id, request))


async def _retry_stream(
    chat_id: ChatId,
    runtime: Run,
    caller: CurrentCaller,
    body: AgainRequest | None = None,
    idempotency_key: IdempotencyKey = None,
) -> StreamingResponse:
    """If the connection breaks, the turn goes on: read on at `/chats/{chat_id}/stream/{channel_id}`."""
    return await streamed(runtime, *await _retrying(chat_id, body, runtime, caller, idempotency_key))


def _again_router() -> APIRouter:
    router = new_router("", "chats")
    message, chat = "/chats/{chat_id}/messages/{message_id}", "/chats/{chat_id}"
    for path, name, do, stream, what in (
        (f"{message}/regenerate", "regenerate", _regenerate, _regenerate_stream, "Ask for another answer"),
        (f"{message}/edit", "edit", _edit, _edit_stream, "Say something else instead"),
        (f"{chat}/retry", "retry", _retry, _retry_stream, "Try again what failed or was stopped"),
    ):
        router.post(path, summary=f"{what} and wait for it", name=name)(do)
        router.post(
            f"{path}/stream",
            summary=f"{what} and stream the answer",
            name=f"{name}_stream",
            responses=dict(EVENT_STREAM),
            response_class=StreamingResponse,
        )(stream)
    return router


again_router = _again_router()

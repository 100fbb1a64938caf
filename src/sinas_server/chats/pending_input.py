"""Questions of agents to their users over HTTP: which are open, and answering them."""

from typing import Annotated
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from sqlalchemy import func, or_, select

from sinas_server.chats.asked import INPUTS, Resumed, asked_call, asked_in, go_on, refuse_code, root_of, settle_call
from sinas_server.chats.chat import find_chat, own_chat
from sinas_server.chats.prepare import usable_agent
from sinas_server.chats.send import answered, finished
from sinas_server.chats.tables import ChatRow, ToolCallRow
from sinas_server.chats.views import MessageResponse, PendingInputResponse
from sinas_server.chats.waits import resume
from sinas_server.functions.tables import ExecutionRow, Status
from sinas_server.functions.trusted import give_input
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import ConflictError, NotFoundError, SinasError
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import Wait
from sinas_server.kernel.unit import Db

ChatId = Annotated[UUID, Path(description="The chat's id.")]
RESOLVED = "this question has been resolved already"
ToolCallId = Annotated[str, Path(description="The call that asks, as `input_required` names it.")]


class PendingInputRequest(BaseModel):
    """An answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    answer: JsonValue = Field(description="What the user says: a text, or what a paused function asks for.")
    wait: bool = Field(default=False, description="Answer when the agent has, rather than at once.")


class AnsweredResponse(BaseModel):
    """What became of an answer."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    status: str = Field(description="`answered`.")
    tool_call_id: str = Field(description="The call.")
    resumed: bool = Field(description="Whether the agent goes on.")
    resume_pending: bool = Field(description="Whether it waits for the user with other calls.")
    channel_id: str | None = Field(description="Where the turn goes on, or which calls still wait.")
    message: str = Field(description="The same in words.")


class AnsweredReply(BaseModel):
    """What the agent said to an answer."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    status: str = Field(description="`completed`, `input_required` or `in_progress`.")
    tool_call_id: str = Field(description="The call.")
    chat_id: UUID = Field(description="The chat.")
    reply: str = Field(description="What the agent says.")
    message: MessageResponse | None = Field(description="The same as a message.")
    pending_inputs: list[PendingInputResponse] = Field(description="Further questions.")
    channel_id: str | None = Field(description="Where the events of this turn can be read.")
    usage: dict[str, JsonValue] | None = Field(description="Calls of the model and their tokens.")


async def answer_call(runtime: Runtime, caller: Caller, chat_id: UUID, tool_call_id: str, answer: JsonValue) -> Resumed:
    """Record the user's answer to a call of his chat, or of an agent called in it; the turn goes on if it now can.

    Raises 404 for a call that asked nothing, 409 for one that asks no more.
    """
    refuse_code(caller, "answer questions")
    async with runtime.database.unit() as db:
        chat = await own_chat(db, caller, chat_id)
        await usable_agent(db, caller, await root_of(db, chat))
        found = await asked_call(db, chat.id, tool_call_id, INPUTS)
        if found is None:
            raise await _not_open(db, caller, chat, tool_call_id)
        call = found.call
        text = answer if isinstance(answer, str) else orjson.dumps(answer).decode()
        if call.waits_for == Wait.INPUT:
            await _give_input(db, runtime, call, text)
        await settle_call(db, call, answer=text, decided_by=caller.id, decided_at=func.now())
        await audit(db, caller, "answer_question", ("chat", str(call.chat_id)), {"tool_call_id": tool_call_id})
        await resume(db, runtime, found.turn)
    return await go_on(runtime, found.turn_here)


async def _give_input(db: Db, runtime: Runtime, call: ToolCallRow, text: str) -> None:
    """Let the paused execution of a call go on; in this transaction, so that its next question is not answered too."""
    paused = select(ExecutionRow).where(
        ExecutionRow.turn_id == call.turn_id,
        ExecutionRow.step == call.step,
        ExecutionRow.call_index == call.index,
        ExecutionRow.status == Status.AWAITING_INPUT,
    )
    row = await db.scalar(paused.with_for_update())
    if row is None or row.prompt != (call.question or {}).get("question"):  # answered at the execution itself, or ended
        raise ConflictError(RESOLVED)
    await give_input(db, runtime, row, text)


async def _not_open(db: Db, caller: Caller, chat: ChatRow, tool_call_id: str) -> SinasError:
    known = (
        select(ToolCallRow.tool_call_id)
        .join(ChatRow, ChatRow.id == ToolCallRow.chat_id)
        .where(
            ChatRow.user_id == caller.id,
            or_(ChatRow.id == chat.id, ChatRow.parent_chat_id.is_not(None)),  # ids of the latter are their own
            ToolCallRow.tool_call_id == tool_call_id,
            ToolCallRow.waits_for.in_([wait.value for wait in INPUTS]),
        )
    )
    if await db.scalar(known.limit(1)) is not None:
        return ConflictError(RESOLVED)
    return NotFoundError("no such question is open in this chat")


async def _list(chat_id: ChatId, db: CurrentDb, caller: CurrentCaller) -> list[PendingInputResponse]:
    chat = await find_chat(db, caller, chat_id, "read")
    return [PendingInputResponse.of(call) for call in await asked_in(db, chat.id, INPUTS)]


async def _answer(
    chat_id: ChatId,
    tool_call_id: ToolCallId,
    body: PendingInputRequest,
    runtime: Run,
    caller: CurrentCaller,
    request: Request,
) -> Response:
    """Once no call of the agent waits any more, it goes on; 200 with what it says if `wait` is set, else 202."""
    resumed = await answer_call(runtime, caller, chat_id, tool_call_id, body.answer)
    if body.wait:
        return JsonAnswer(await _reply(runtime, resumed, chat_id, tool_call_id, request))
    told = AnsweredResponse(
        status="answered",
        tool_call_id=tool_call_id,
        resumed=resumed.queued,
        resume_pending=not resumed.queued,
        channel_id=str(resumed.channel_id),
        message="Answered; " + ("the agent goes on" if resumed.queued else "it still waits for the user"),
    )
    return JsonAnswer(told.model_dump(mode="json"), 202)


async def _reply(
    runtime: Runtime, resumed: Resumed, chat_id: UUID, tool_call_id: str, request: Request
) -> dict[str, object]:
    said = await answered(runtime, await finished(runtime, resumed.turn_id, request))
    message = MessageResponse(**{name: getattr(said, name) for name in MessageResponse.model_fields})
    reply = AnsweredReply(
        status=said.status,
        tool_call_id=tool_call_id,
        chat_id=chat_id,
        reply=said.content or "",
        message=message,
        pending_inputs=said.pending_inputs,
        channel_id=said.channel_id,
        usage=said.usage,
    )
    return reply.model_dump(mode="json")


def _pending_input_router() -> APIRouter:
    router = new_router("", "pending_input")
    router.get("/chats/{chat_id}/pending-input", summary="List the questions that wait for an answer", name="list")(
        _list
    )
    router.post(
        "/chats/{chat_id}/pending-input/{tool_call_id}",
        status_code=202,
        summary="Answer a question",
        name="answer",
        response_model=AnsweredResponse,
        responses={
            200: {"model": AnsweredReply, "description": "With `wait`: what the agent says."},
            404: {"description": "No such question in this chat."},
            409: {"description": "It was resolved already."},
        },
    )(_answer)
    return router


pending_input_router = _pending_input_router()

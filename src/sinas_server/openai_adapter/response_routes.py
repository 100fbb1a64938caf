"""Responses and embeddings over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import JsonValue

from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router
from sinas_server.kernel.store import Resource
from sinas_server.openai_adapter.embeddings import EmbeddingsRequest, embed, shown
from sinas_server.openai_adapter.errors import ParameterError
from sinas_server.openai_adapter.models import find_target
from sinas_server.openai_adapter.pieces import Final
from sinas_server.openai_adapter.response_events import ResponseWriter
from sinas_server.openai_adapter.response_request import ResponseRequest
from sinas_server.openai_adapter.responses import converse, forget, keep, stored
from sinas_server.openai_adapter.telling import ERRORS, tell
from sinas_server.openai_adapter.views import DeletedResponse, EmbeddingsResponse, ResponseObject

ResponseId = Annotated[str, Path(max_length=64, description="A response's id.")]


async def _respond(body: ResponseRequest, runtime: Run, caller: CurrentCaller) -> Response:
    """Like a chat completion, and stored for 30 days, so that the next request may name it as
    `previous_response_id`. An agent goes on in the chat of that response."""
    conversation = await converse(runtime, caller, body)

    async def kept(told: dict[str, JsonValue], final: Final) -> None:
        if body.store:
            await keep(runtime, caller, conversation, told, final)

    writer = ResponseWriter(body, conversation.model, kept)
    return await tell(writer, conversation.pieces, conversation.started, stream=body.stream)


async def _get(response_id: ResponseId, runtime: Run, caller: CurrentCaller) -> Response:
    return JsonAnswer(await stored(runtime, caller, response_id))


async def _delete(response_id: ResponseId, runtime: Run, caller: CurrentCaller) -> DeletedResponse:
    await forget(runtime, caller, response_id)
    return DeletedResponse(id=response_id)


async def _embed(body: EmbeddingsRequest, runtime: Run, caller: CurrentCaller) -> Response:
    """Of providers that have embeddings: OpenAI and what speaks its API, Mistral and Ollama."""
    target = await find_target(runtime, caller, body.model)
    if isinstance(target, Resource):
        raise ParameterError("model", "an agent has no embeddings: name a provider's model")
    return JsonAnswer(shown(body.model, body, await embed(runtime, caller, target, body)))


def _response_router() -> APIRouter:
    router = new_router("/v1", "openai")
    router.post(
        "/responses",
        summary="Answer, alone or after an earlier response",
        name="respond",
        response_model=ResponseObject,
        responses=dict(ERRORS),
    )(_respond)
    router.get(
        "/responses/{response_id}",
        summary="Get a stored response",
        name="response",
        response_model=ResponseObject,
        responses=dict(ERRORS),
    )(_get)
    router.delete(
        "/responses/{response_id}", summary="Delete a stored response", name="forget_response", responses=dict(ERRORS)
    )(_delete)
    router.post(
        "/embeddings",
        summary="Embed texts",
        name="embed",
        response_model=EmbeddingsResponse,
        responses=dict(ERRORS),
    )(_embed)
    return router


response_router = _response_router()

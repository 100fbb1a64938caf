"""The adapter over HTTP."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Response

from sinas_server.kernel.http import CurrentCaller, CurrentDb, Run, new_router
from sinas_server.kernel.store import Resource
from sinas_server.openai_adapter.agent_answer import HEADER, Where, agent_answer, start_agent
from sinas_server.openai_adapter.completions import Chunks
from sinas_server.openai_adapter.errors import ParameterError
from sinas_server.openai_adapter.models import Model, find_model, find_target, list_models
from sinas_server.openai_adapter.provider_answer import model_request, provider_answer
from sinas_server.openai_adapter.request import ChatCompletionRequest
from sinas_server.openai_adapter.telling import ERRORS, tell
from sinas_server.openai_adapter.views import ChatCompletion, ModelListResponse, ModelObject

ModelId = Annotated[str, Path(description="A model's name, slashes and all.")]
ChatHeader = Annotated[
    str | None, Header(alias=HEADER, description="Agents: go on in this chat, which has the earlier messages itself.")
]


def _shown(model: Model) -> ModelObject:
    return ModelObject(id=model.id, created=model.created, owned_by=model.owned_by)


async def _models(db: CurrentDb, caller: CurrentCaller) -> ModelListResponse:
    """Agents you may chat with, and those models of providers that you may use."""
    return ModelListResponse(data=[_shown(model) for model in await list_models(db, caller)])


async def _model(model_id: ModelId, runtime: Run, caller: CurrentCaller) -> ModelObject:
    return _shown(await find_model(runtime, caller, model_id))


async def _complete(
    body: ChatCompletionRequest, runtime: Run, caller: CurrentCaller, x_chat_id: ChatHeader = None
) -> Response:
    """A provider's model gets the messages, tools and settings as they are. An agent works on the last message with
    its own tools and settings; without `X-Chat-ID` it is told the earlier ones, in a chat that is deleted after a day.
    """
    _refuse_what_is_not_supported(body)
    target = await find_target(runtime, caller, body.model)
    usage = body.stream_options is not None and body.stream_options.include_usage
    if isinstance(target, Resource):
        started = await start_agent(runtime, caller, target, body, Where(x_chat_id) if x_chat_id is not None else None)
        writer = Chunks(body.model or f"agent:{target.ref}", include_usage=usage)
        return await tell(writer, agent_answer(runtime, started), started, stream=body.stream)
    pieces = provider_answer(runtime, caller, target, model_request(target, body))
    return await tell(Chunks(body.model or target.model, include_usage=usage), pieces, None, stream=body.stream)


def _refuse_what_is_not_supported(body: ChatCompletionRequest) -> None:
    if body.n not in (None, 1):
        raise ParameterError("n", "only one answer per request is supported: n must be 1")
    if body.logprobs:
        raise ParameterError("logprobs", "log probabilities are not supported")


def _adapter_router() -> APIRouter:
    router = new_router("/v1", "openai")
    router.get("/models", summary="List the models you may use", name="models", responses=dict(ERRORS))(_models)
    router.get("/models/{model_id:path}", summary="Get a model", name="model", responses=dict(ERRORS))(_model)
    router.post(
        "/chat/completions",
        summary="Answer a conversation",
        name="complete",
        response_model=ChatCompletion,
        responses=dict(ERRORS),
    )(_complete)
    return router


adapter_router = _adapter_router()

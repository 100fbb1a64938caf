"""Asking a provider's model directly: the client's messages, tools and settings go through as they are."""

from contextlib import aclosing
from dataclasses import replace

from anyio import CancelScope, move_on_after
from pydantic import JsonValue

from sinas_server.backends.llm import (
    Answer,
    ModelRequest,
    ProviderError,
    Sampling,
    ToolCallDelta,
    ToolChoice,
    ToolSpec,
    Usage,
)
from sinas_server.chats.ask import ask
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.openai_adapter.errors import ParameterError, from_provider
from sinas_server.openai_adapter.messages import to_messages
from sinas_server.openai_adapter.pieces import Final, Piece, Pieces
from sinas_server.openai_adapter.request import ChatCompletionRequest, NamedTool
from sinas_server.providers.admit import tokens_asked, within_budgets
from sinas_server.providers.resolve import Resolved
from sinas_server.providers.usage import ModelCall, Payer, record_now, tokens_in

ANY_OBJECT: dict[str, JsonValue] = {"type": "object"}
MOST_STOPS = 4
RECORD_SECONDS = 5
"""How long a request that is being torn down may take to record what it took."""


def model_request(target: Resolved, body: ChatCompletionRequest) -> ModelRequest:
    """The request for the port. Raises `ParameterError` and `InvalidError` naming what cannot be honored."""
    if not body.messages:
        raise ParameterError("messages", "at least one message is needed")
    return ModelRequest(
        model=target.model,
        messages=to_messages(target, body.messages),
        tools=_tools(body),
        sampling=_sampling(body),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        output_schema=_output_schema(body),
        output_strict=body.response_format.strict if body.response_format is not None else None,
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls if body.tools else None,
        stream_calls=body.stream,
        verbatim=True,
    )


def _tools(body: ChatCompletionRequest) -> tuple[ToolSpec, ...]:
    tools = [tool.function for tool in body.tools or ()]
    names = [tool.name for tool in tools]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ParameterError("tools", f"two tools are named '{double}'")
    empty: dict[str, JsonValue] = {"type": "object", "properties": {}}
    return tuple(ToolSpec(tool.name, tool.description or "", tool.parameters or empty, tool.strict) for tool in tools)


def _tool_choice(body: ChatCompletionRequest) -> ToolChoice | None:
    choice = body.tool_choice
    names = {tool.function.name for tool in body.tools or ()}
    if choice is None or (choice in ("auto", "none") and not names):
        return None
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise ParameterError("tool_choice", f"'{choice.function.name}' is not among the tools")
        return ToolChoice("required", choice.function.name)
    if choice == "required" and not names:
        raise ParameterError("tool_choice", "'required' needs tools")
    return ToolChoice(choice)


def _sampling(body: ChatCompletionRequest) -> Sampling:
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stops) > MOST_STOPS or not all(stops):
        raise ParameterError("stop", f"at most {MOST_STOPS} sequences, none of them empty")
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        stop=stops,
        seed=body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        reasoning=body.reasoning_effort,
    )


def _output_schema(body: ChatCompletionRequest) -> dict[str, JsonValue] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT
    if wanted.json_schema is None:
        raise ParameterError("response_format.json_schema", "is needed for type json_schema")
    return wanted.json_schema.json_schema or ANY_OBJECT


async def provider_answer(runtime: Runtime, caller: Caller, provider: Resolved, request: ModelRequest) -> Pieces:
    """The answer as it comes; what it took is recorded before its end is told. Raises `SinasError` for whatever a
    budget or the provider has against it."""
    payer = Payer(caller.id, caller.api_key)
    async with within_budgets(runtime, payer, provider, request):
        call = ModelCall(payer, provider, Usage(prompt_tokens=tokens_asked(request)), estimated=True)
        said: list[str] = []
        try:
            async with aclosing(ask(runtime, provider.config, request)) as groups:
                async for group in groups:
                    pieces = [event for event in group if not isinstance(event, Answer)]
                    said += [piece.arguments if isinstance(piece, ToolCallDelta) else piece.text for piece in pieces]
                    if pieces:  # not kept waiting until the call is recorded
                        yield list[Piece](pieces)
                    for answer in (event for event in group if isinstance(event, Answer)):
                        call = replace(call, usage=answer.usage, estimated=False)
                        with CancelScope(shield=True):  # who leaves in this moment has been answered
                            await record_now(runtime.database, call)
                        yield [Final(answer)]
        except ProviderError as error:
            call = replace(call, usage=Usage(), failed=True, estimated=False)
            await record_now(runtime.database, call)
            raise from_provider(error) from error
        finally:
            if call.estimated:
                await _record_cut_off(runtime, call, "".join(said))


async def _record_cut_off(runtime: Runtime, call: ModelCall, said: str) -> None:
    """Who leaves early pays for what was said; also while his request is being torn down."""
    usage = replace(call.usage, completion_tokens=tokens_in(said))
    with move_on_after(RECORD_SECONDS, shield=True):
        await record_now(runtime.database, replace(call, usage=usage))

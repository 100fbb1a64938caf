"""What the adapter answers, as its document describes it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class _Out(BaseModel):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class ModelObject(_Out):
    """A model."""

    id: str = Field(description="Its name: `agent:namespace/name` or `provider/model`.")
    object: Literal["model"] = Field(default="model", description="`model`.")
    created: int = Field(description="When it was declared, in seconds since 1970.")
    owned_by: str = Field(default="sinas", description="`sinas` for agents, else the provider's name.")


class ModelListResponse(_Out):
    """The models the caller may use."""

    object: Literal["list"] = Field(default="list", description="`list`.")
    data: list[ModelObject] = Field(description="The models.")


class TokenDetails(_Out):
    """Where the tokens of the prompt came from."""

    cached_tokens: int = Field(description="Those the provider had cached.")


class CompletionUsage(_Out):
    """Tokens."""

    prompt_tokens: int = Field(description="Read by the model.")
    completion_tokens: int = Field(description="Written by it.")
    total_tokens: int = Field(description="Together.")
    prompt_tokens_details: TokenDetails = Field(description="Of those that were read.")


class CalledFunction(_Out):
    """What is called with what."""

    name: str = Field(description="The function.")
    arguments: str = Field(description="JSON text, as the model wrote it.")


class CompletionCall(_Out):
    """A call for the client to carry out."""

    id: str = Field(description="Its id; the result goes into a message of the role `tool` with it.")
    type: Literal["function"] = Field(description="`function`.")
    function: CalledFunction = Field(description="What is called.")


class CompletionMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = Field(description="`assistant`.")
    content: str | None = Field(description="Its text; null if it only calls tools.")
    refusal: str | None = Field(description="Always null.")
    reasoning_content: str = Field(default="", description="The model's visible reasoning, where there is some.")
    tool_calls: list[CompletionCall] = Field(default=[], description="Calls for the client, where there are some.")


class CompletionChoice(_Out):
    """The one answer."""

    index: int = Field(description="0.")
    message: CompletionMessage = Field(description="What the model answers.")
    logprobs: JsonValue = Field(description="Always null.")
    finish_reason: str = Field(description="`stop`, `length`, `tool_calls` or `content_filter`.")


class AgentState(BaseModel):
    """What OpenAI has no words for."""

    chat_id: str = Field(description="The agent's chat; send it as `X-Chat-ID` to go on in it.")
    status: str = Field(description="`completed`, or `input_required` if the agent waits for the user.")
    pending_approvals: list[JsonValue] = Field(default=[], description="The calls that wait for approval.")
    pending_inputs: list[JsonValue] = Field(default=[], description="The questions that wait for an answer.")


class ChatCompletion(BaseModel):
    """An answer. With `stream` it comes as `chat.completion.chunk` events, ended by `data: [DONE]`."""

    id: str = Field(description="Its id.")
    object: Literal["chat.completion"] = Field(description="`chat.completion`.")
    created: int = Field(description="Seconds since 1970.")
    model: str = Field(description="The model as it was asked for.")
    choices: list[CompletionChoice] = Field(description="One answer.")
    usage: CompletionUsage = Field(description="Tokens; of an agent, those of all its calls of the model.")
    sinas: AgentState | None = Field(default=None, description="Of agents: the chat, and what waits.")


class ErrorObject(_Out):
    """What went wrong."""

    message: str = Field(description="In words.")
    type: str = Field(description="`invalid_request_error`, `authentication_error`, `rate_limit_error`, ...")
    param: str | None = Field(description="The field it is about.")
    code: str | None = Field(description="A word for programs.")


class ErrorResponse(_Out):
    """An error in OpenAI's shape."""

    error: ErrorObject = Field(description="The error.")


class ResponseObject(BaseModel):
    """A response, as OpenAI's reference describes it. With `stream` it comes as events, the last with all of it."""

    id: str = Field(description="Its id.")
    object: Literal["response"] = Field(description="`response`.")
    created_at: int = Field(description="Seconds since 1970.")
    status: str = Field(description="`completed`, or `incomplete` if it was cut short.")
    model: str = Field(description="The model as it was asked for.")
    previous_response_id: str | None = Field(description="What it goes on from.")
    output: list[JsonValue] = Field(description="Messages, and calls for the client to carry out.")
    usage: JsonValue = Field(description="`input_tokens`, `output_tokens`, `total_tokens`.")
    incomplete_details: JsonValue = Field(description="Why it was cut short: `reason`.")
    sinas: AgentState | None = Field(default=None, description="Of agents: the chat, and what waits.")


class DeletedResponse(_Out):
    """What was deleted."""

    id: str = Field(description="The response.")
    object: Literal["response"] = Field(default="response", description="`response`.")
    deleted: Literal[True] = Field(default=True, description="True.")


class EmbeddingObject(_Out):
    """One vector."""

    object: Literal["embedding"] = Field(description="`embedding`.")
    index: int = Field(description="Of which text, counted from 0.")
    embedding: list[float] | str = Field(description="The numbers, or base64.")


class EmbeddingUsage(_Out):
    """Tokens of the texts."""

    prompt_tokens: int = Field(description="Those the model read.")
    total_tokens: int = Field(description="The same.")


class EmbeddingsResponse(_Out):
    """Vectors in the order of the texts."""

    object: Literal["list"] = Field(description="`list`.")
    data: list[EmbeddingObject] = Field(description="The vectors.")
    model: str = Field(description="The model as it was asked for.")
    usage: EmbeddingUsage = Field(description="How many tokens they took.")

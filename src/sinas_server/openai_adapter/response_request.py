"""The body of a response, as OpenAI's SDKs send it, and the same as a chat completion."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from sinas_server.openai_adapter.errors import ParameterError
from sinas_server.openai_adapter.request import (
    AudioPart,
    ChatCompletionRequest,
    ChatMessage,
    Effort,
    File,
    FilePart,
    FunctionCall,
    FunctionSpec,
    ImageUrl,
    ImageUrlPart,
    In,
    JsonSchemaFormat,
    NamedFunction,
    NamedTool,
    Part,
    RefusalPart,
    ResponseFormat,
    TextPart,
    ToolCall,
    ToolSpec,
)

LONGEST_INPUT = 5000


class ImageInput(In):
    """An image."""

    type: Literal["input_image"] = Field(description="`input_image`.")
    image_url: str | None = Field(default=None, description="An https or data URL.")
    detail: Literal["low", "high", "auto"] | None = Field(default=None, description="How closely to look.")
    file_id: str | None = Field(default=None, description="A file kept by a provider; not supported.")


class FileInput(In):
    """A file."""

    type: Literal["input_file"] = Field(description="`input_file`.")
    file_data: str | None = Field(default=None, description="In base64, or as a data URL.")
    filename: str | None = Field(default=None, max_length=255, description="Its name.")
    file_id: str | None = Field(default=None, description="A file kept by a provider; not supported.")


ContentInput = Annotated[TextPart | RefusalPart | ImageInput | FileInput | AudioPart, Field(discriminator="type")]


class InputItem(In):
    """A message, a call of a function, its result, or (left out) reasoning."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = Field(
        default="message", description="What it is."
    )
    role: Literal["system", "developer", "user", "assistant"] | None = Field(default=None, description="Of a message.")
    content: str | list[ContentInput] | None = Field(default=None, description="Of a message.")
    call_id: str | None = Field(default=None, min_length=1, max_length=512, description="Of a call, and of its result.")
    name: str | None = Field(default=None, min_length=1, max_length=128, description="Of a call: the function.")
    arguments: str | None = Field(default=None, description="Of a call: JSON text.")
    output: str | list[ContentInput] | None = Field(default=None, description="Of a result.")


class FunctionTool(FunctionSpec):
    """A function of the client's."""

    type: Literal["function"] = Field(description="`function`.")


class FunctionChoice(In):
    """Call exactly this function."""

    type: Literal["function"] = Field(description="`function`.")
    name: str = Field(description="Its name.")


class TextFormat(In):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Text, any JSON object, or by schema.")
    name: str = Field(default="answer", description="A name for the schema.")
    json_schema: dict[str, JsonValue] | None = Field(default=None, alias="schema", description="JSON Schema.")
    strict: bool | None = Field(default=None, description="Whether it must be met exactly.")


class TextOptions(In):
    """How the answer's text is to be."""

    format: TextFormat | None = Field(default=None, description="What it must be.")


class Reasoning(In):
    """How to reason."""

    effort: Effort | None = Field(default=None, description="How much.")


class ResponseRequest(In):
    """Something to answer, alone or after an earlier response."""

    model: str | None = Field(
        default=None, max_length=600, description="`agent:namespace/name`, `provider/model`; absent: the default agent."
    )
    input: str | Annotated[list[InputItem], Field(max_length=LONGEST_INPUT)] = Field(description="A text, or items.")
    instructions: str | None = Field(default=None, description="A system message for this answer alone.")
    previous_response_id: str | None = Field(default=None, max_length=64, description="The response to go on from.")
    store: bool = Field(default=True, description="Keep the response for 30 days, so that it can be gone on from.")
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Randomness; not for agents.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Nucleus sampling; not for agents.")
    max_output_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1, description="Longest answer.")
    tools: list[FunctionTool] = Field(default=[], max_length=512, description="The client's functions.")
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = Field(
        default=None, description="Which functions may be called."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Whether several calls may come at once.")
    text: TextOptions | None = Field(default=None, description="How the answer's text is to be.")
    reasoning: Reasoning | None = Field(default=None, description="How to reason.")
    metadata: dict[str, str] | None = Field(default=None, max_length=16, description="Given back as it is.")
    background: bool | None = Field(default=None, description="Not supported.")


def messages_of(body: ResponseRequest) -> list[ChatMessage]:
    """What the request adds to the conversation. Raises `ParameterError`."""
    if isinstance(body.input, str):
        if not body.input:
            raise ParameterError("input", "must not be empty")
        return [ChatMessage(role="user", content=body.input).made_of("input")]
    found: list[ChatMessage] = []
    for index, item in enumerate(body.input):
        if item.type == "function_call":
            _add_call(found, item, index)
        elif item.type == "function_call_output":
            result = ChatMessage(role="tool", tool_call_id=item.call_id, content=_content(item.output))
            found.append(result.made_of("input", index))
        elif item.type == "message":
            if item.role is None:
                raise ParameterError(f"input.{index}.role", "a message needs a role")
            found.append(ChatMessage(role=item.role, content=_content(item.content)).made_of("input", index))
    if not found:
        raise ParameterError("input", "at least one message is needed")
    return found


def _add_call(found: list[ChatMessage], item: InputItem, index: int) -> None:
    """Calls that follow each other, or what was said before them, are one message."""
    if item.call_id is None or item.name is None:
        missing = "call_id" if item.call_id is None else "name"
        raise ParameterError(f"input.{index}.{missing}", "a function_call needs call_id and name")
    call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name, arguments=item.arguments or "{}"))
    last = found.pop() if found and found[-1].role == "assistant" else ChatMessage(role="assistant")
    found.append(last.model_copy(update={"tool_calls": [*(last.tool_calls or ()), call]}).made_of("input", index))


def _content(given: str | list[ContentInput] | None) -> str | list[Part] | None:
    return given if given is None or isinstance(given, str) else [_part(part) for part in given]


def _part(part: TextPart | RefusalPart | ImageInput | FileInput | AudioPart) -> Part:
    if isinstance(part, ImageInput):
        url = part.image_url or ("" if part.file_id is None else "file_id is not supported")
        return ImageUrlPart(type="image_url", image_url=ImageUrl(url=url, detail=part.detail))
    if isinstance(part, FileInput):
        file = File(file_data=part.file_data, filename=part.filename, file_id=part.file_id)
        return FilePart(type="file", file=file)
    return part


def as_completion(body: ResponseRequest, messages: list[ChatMessage]) -> ChatCompletionRequest:
    """The same request for chat completions, after `messages`. Raises `ParameterError`."""
    if body.background:
        raise ParameterError("background", "answers in the background are not supported")
    told = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    return ChatCompletionRequest(
        model=body.model,
        messages=[*told, *messages],
        stream=body.stream,
        temperature=body.temperature,
        top_p=body.top_p,
        max_completion_tokens=body.max_output_tokens,
        tools=[ToolSpec(type="function", function=FunctionSpec(**dict(tool))) for tool in body.tools] or None,
        tool_choice=_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
    )


def _choice(body: ResponseRequest) -> Literal["none", "auto", "required"] | NamedTool | None:
    choice = body.tool_choice
    if isinstance(choice, FunctionChoice):
        return NamedTool(type="function", function=NamedFunction(name=choice.name))
    return choice


def _format(body: ResponseRequest) -> ResponseFormat | None:
    wanted = body.text.format if body.text else None
    if wanted is None:
        return None
    if wanted.type == "json_schema" and wanted.json_schema is None:
        raise ParameterError("text.format.schema", "is needed for type json_schema")
    schema = JsonSchemaFormat(name=wanted.name, schema=wanted.json_schema or {}, strict=wanted.strict)
    return ResponseFormat(type=wanted.type, json_schema=schema if wanted.type == "json_schema" else None)

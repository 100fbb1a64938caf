"""The body of a chat completion, as OpenAI's SDKs send it; unknown fields are ignored."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr

from sinas_server.chats.queued import WhenBusy
from sinas_server.kernel.errors import Location

MAX_MESSAGES = 5000


class In(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(In):
    """Text."""

    type: Literal["text", "input_text", "output_text"] = Field(description="What it is.")
    text: str = Field(description="The text.")


class RefusalPart(In):
    """What the model said instead of an answer."""

    type: Literal["refusal"] = Field(description="`refusal`.")
    refusal: str = Field(description="The text.")


class ImageUrl(In):
    """Where an image is."""

    url: str = Field(description="An https or data URL.")
    detail: Literal["low", "high", "auto"] | None = Field(default=None, description="How closely to look.")


class ImageUrlPart(In):
    """An image as OpenAI writes it."""

    type: Literal["image_url"] = Field(description="`image_url`.")
    image_url: ImageUrl = Field(description="The image.")


class ImageSource(In):
    """An image as Anthropic writes it: `base64` with `media_type` and `data`, or `url`."""

    type: Literal["base64", "url"] = Field(description="How it is given.")
    media_type: str | None = Field(default=None, pattern=r"^image/[\w.+-]+$", description="Its type: `image/png`.")
    data: str | None = Field(default=None, description="The image in base64.")
    url: str | None = Field(default=None, description="An https URL.")


class ImageSourcePart(In):
    """An image as Anthropic writes it."""

    type: Literal["image"] = Field(description="`image`.")
    source: ImageSource = Field(description="The image.")


class InputAudio(In):
    """A recording."""

    data: str = Field(description="In base64.")
    format: Literal["wav", "mp3", "m4a", "ogg"] = Field(description="Its format.")


class AudioPart(In):
    """A recording."""

    type: Literal["input_audio"] = Field(description="`input_audio`.")
    input_audio: InputAudio = Field(description="The recording.")


class File(In):
    """A file's content."""

    file_data: str | None = Field(default=None, description="In base64, or as a data URL.")
    file_id: str | None = Field(default=None, description="A file kept by a provider; not supported.")
    filename: str | None = Field(default=None, max_length=255, description="Its name.")


class FilePart(In):
    """A file."""

    type: Literal["file"] = Field(description="`file`.")
    file: File = Field(description="The file.")


Part = Annotated[
    TextPart | RefusalPart | ImageUrlPart | ImageSourcePart | AudioPart | FilePart, Field(discriminator="type")
]


class FunctionCall(In):
    """Which function is called with what."""

    name: str = Field(min_length=1, max_length=128, description="The function.")
    arguments: str = Field(default="{}", description="JSON text.")


class ToolCall(In):
    """A call the model asked for earlier."""

    id: str = Field(min_length=1, max_length=512, description="Its id.")
    type: Literal["function"] = Field(default="function", description="`function`.")
    function: FunctionCall = Field(description="What is called.")


class ChatMessage(In):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="Who says it.")
    content: str | list[Part] | None = Field(default=None, description="Text, or parts.")
    name: str | None = Field(default=None, description="A name of whoever says it; not passed on.")
    tool_calls: list[ToolCall] | None = Field(default=None, description="What the model asked for.")
    tool_call_id: str | None = Field(default=None, description="The call that a tool's message answers.")
    _of: Location | None = PrivateAttr(default=None)

    def made_of(self, *place: str | int) -> Self:
        """The same, made of something that stands elsewhere in the request's body."""
        self._of = ("body", *place)
        return self

    def place(self, index: int) -> Location:
        """Where the request has it that has it as this one of its messages."""
        return self._of or ("body", "messages", index)


class FunctionSpec(In):
    """A function of the client's."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Its name.")
    description: str | None = Field(default=None, description="What it does.")
    parameters: dict[str, JsonValue] | None = Field(default=None, description="JSON Schema of its arguments.")
    strict: bool | None = Field(default=None, description="Whether arguments must meet the schema.")


class ToolSpec(In):
    """A tool of the client's."""

    type: Literal["function"] = Field(description="`function`.")
    function: FunctionSpec = Field(description="The function.")


class NamedFunction(In):
    """A function by its name."""

    name: str = Field(description="Its name.")


class NamedTool(In):
    """Call exactly this tool."""

    type: Literal["function"] = Field(description="`function`.")
    function: NamedFunction = Field(description="The function.")


class JsonSchemaFormat(In):
    """The schema an answer must meet."""

    name: str = Field(description="A name for it.")
    description: str | None = Field(default=None, description="What it is for.")
    json_schema: dict[str, JsonValue] = Field(alias="schema", default={}, description="JSON Schema.")
    strict: bool | None = Field(default=None, description="Whether it must be met exactly.")


class ResponseFormat(In):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"] = Field(description="Text, any JSON object, or by schema.")
    json_schema: JsonSchemaFormat | None = Field(default=None, description="The schema, for `json_schema`.")

    @property
    def strict(self) -> bool | None:
        """Whether the answer must meet the schema exactly, if the client says."""
        return self.json_schema.strict if self.json_schema is not None else None


class StreamOptions(In):
    """How to stream."""

    include_usage: bool = Field(default=False, description="End with a chunk that holds the tokens.")


Effort = Literal["minimal", "low", "medium", "high"]


class ChatCompletionRequest(In):
    """A conversation to continue."""

    model: str | None = Field(
        default=None, max_length=600, description="`agent:namespace/name`, `provider/model`; absent: the default agent."
    )
    messages: list[ChatMessage] = Field(default=[], max_length=MAX_MESSAGES, description="The conversation.")
    stream: bool = Field(default=False, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="How to stream.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Randomness; not for agents.")
    top_p: float | None = Field(default=None, ge=0, le=1, description="Nucleus sampling; not for agents.")
    stop: str | list[str] | None = Field(default=None, description="Where to stop; not for agents.")
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1, description="Longest answer; not for agents.")
    max_completion_tokens: int | None = Field(
        default=None, ge=1, le=2**31 - 1, description="The same under its newer name; wins."
    )
    n: int | None = Field(default=None, description="Only 1: one answer.")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63, description="For repeatable answers.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, description="Against repeated topics.")
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, description="Against repeated words.")
    reasoning_effort: Effort | None = Field(default=None, description="How much to reason.")
    tools: list[ToolSpec] | None = Field(
        default=None, max_length=512, description="The client's tools; not for agents."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        default=None, description="Which tools may be called."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="Whether several calls may come at once.")
    response_format: ResponseFormat | None = Field(default=None, description="What the answer must be; not for agents.")
    logprobs: bool | None = Field(default=None, description="Not supported.")
    when_busy: WhenBusy = Field(
        default="queue",
        description="Sinas: if the agent is at work in the chat of `X-Chat-ID`, as for `POST /chats/{id}/messages`.",
    )
    input: dict[str, JsonValue] | None = Field(
        default=None, description="Sinas: values for the agent's `input_schema`, for a conversation that begins."
    )

"""The format of scenario files: what is said to an agent, and what is expected of it."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from sinas_server.kit.schema import check_schema


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return pattern


def _schema(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    check_schema(schema)
    return schema


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _containing(value: object) -> object:
    return {"contains": [value]} if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Reference = Annotated[str, Field(pattern=r"^[^/\s][^/]*/[^/\s][^/]*$")]
ToolName = Annotated[str, Field(min_length=1, max_length=600)]
Texts = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=list[str] | str)]


class ExpectedCall(_Part):
    """A call of a tool."""

    tool: ToolName = Field(description="The tool, as `namespace/name` or by the name the model sees.")
    arguments: dict[str, JsonValue] = Field(default={}, description="Arguments that must be among those of the call.")
    exact: bool = Field(default=False, description="Whether the call must have no arguments beside these.")


class Judge(_Part):
    """A model's opinion of the answer."""

    rubric: str = Field(min_length=1, max_length=10_000, description="What the answer must meet.")
    provider: str | None = Field(default=None, description="The LLM provider to ask; by default the agent's.")
    model: str | None = Field(default=None, description="The model to ask; by default the agent's.")


class ExpectedAnswer(_Part):
    """What must hold for the answer's text; everything given must."""

    exact: str | None = Field(default=None, description="The whole text; spaces around it do not count.")
    contains: Texts = Field(default=[], description="Texts that must be in it.")
    excludes: Texts = Field(default=[], description="Texts that must not be in it.")
    regex: Annotated[str, AfterValidator(_regex)] | None = Field(
        default=None, description="A Python regular expression that must be found in it."
    )
    json_schema: Annotated[dict[str, JsonValue], AfterValidator(_schema)] | None = Field(
        default=None, description="A JSON Schema that the text, read as JSON, must meet."
    )
    judge: Judge | None = Field(default=None, description="A rubric that a model must find met.")


Answer = Annotated[ExpectedAnswer, BeforeValidator(_containing, json_schema_input_type=ExpectedAnswer | str)]


class Expectations(_Part):
    """What must hold after a turn. What is not given is not checked."""

    status: Literal["completed", "failed", "waiting"] = Field(
        default="completed",
        description="How the turn ends; `waiting`: for an approval or answer that the scenario does not give.",
    )
    tool_calls: list[ExpectedCall] | None = Field(default=None, description="The calls of tools; `[]` for none.")
    in_order: bool = Field(default=False, description="Whether the calls must come in this order.")
    other_calls: bool = Field(default=False, description="Whether there may be calls beside those expected.")
    max_tool_calls: int | None = Field(default=None, ge=0, description="The most calls of tools.")
    max_tokens: int | None = Field(default=None, ge=1, description="The most tokens, read and written together.")
    answer: Answer | None = Field(default=None, description="What must hold for the answer; a text means `contains`.")
    error: str | None = Field(default=None, min_length=1, description="Text in the error of a turn that fails.")


class Approval(_Part):
    """The decision on a call that needs approval."""

    tool: ToolName = Field(description="The tool, as `namespace/name` or by the name the model sees.")
    approve: bool = Field(description="Whether it may be carried out.")


class Turn(_Part):
    """What the user says, and what is expected of the agent."""

    user: str = Field(min_length=1, description="What the user says.")
    approvals: list[Approval] = Field(default=[], description="Decisions on calls that need approval.")
    answers: list[str] = Field(default=[], description="Answers to what the agent asks, in this order.")
    expect: Expectations = Field(default=Expectations(), description="What must hold afterwards.")


class StubbedTool(_Part):
    """What a tool returns instead of being called."""

    tool: ToolName = Field(description="The tool, as `namespace/name` or by the name the model sees.")
    arguments: dict[str, JsonValue] = Field(default={}, description="Only for calls with these arguments among theirs.")
    result: JsonValue = Field(default=None, description="What it returns.")
    error: str | None = Field(default=None, description="How it fails instead.")


class Scenario(_Part):
    """A conversation with an agent, and what is expected of it."""

    name: str = Field(min_length=1, max_length=200, description="What it shows; unique among the scenarios.")
    agent: Reference = Field(description="The agent, as `namespace/name`.")
    input: dict[str, JsonValue] | None = Field(default=None, description="Values the agent's `input_schema` asks for.")
    stubs: list[StubbedTool] = Field(
        default=[], description="Results of tools that are not to be called; the first fits."
    )
    timeout: float = Field(default=120, gt=0, le=3600, description="The longest a turn may take, in seconds.")
    turns: list[Turn] = Field(min_length=1, description="The conversation.")

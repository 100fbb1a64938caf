"""How executions look in answers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, Field, JsonValue

from sinas_server.functions.execute import Standing
from sinas_server.functions.presets import Shape
from sinas_server.functions.tables import Cause, ExecutionRow, Status, Trigger
from sinas_server.kernel.errors import InvalidError

JOB_STATES: Mapping[str, str] = {
    Status.PENDING: "queued",
    Status.RUNNING: "running",
    Status.AWAITING_INPUT: "awaiting_input",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


class ExecutionResponse(BaseModel):
    """An execution."""

    id: UUID = Field(description="Its id.")
    execution_id: str = Field(description="The same, as older clients read it.")
    function_name: str = Field(description="`namespace/name` of the function.")
    function_version: int = Field(description="The version of the function that ran, or is to run.")
    user_id: UUID = Field(description="For whom it runs.")
    trigger_type: Trigger = Field(description="What started it.")
    trigger_id: str = Field(description="What the starter calls it; empty if nothing was given.")
    parent_id: UUID | None = Field(description="The execution whose code asked for this one.")
    rerun_of: UUID | None = Field(description="The execution that this one repeats.")
    batch_id: UUID | None = Field(description="The batch it belongs to.")
    callback_url: str | None = Field(description="Where its end is posted.")
    chat_id: UUID | None = Field(description="The chat whose agent called it.")
    tool_call_id: str | None = Field(description="The tool call of that agent.")
    status: Status = Field(description="Where it stands.")
    input_data: dict[str, JsonValue] = Field(description="What it was given.")
    output_data: JsonValue = Field(description="What it returned; null unless it completed.")
    prompt: str | None = Field(description="What it asks for, while it waits for input.")
    cause: Cause | None = Field(description="Why it failed, as a word.")
    error: str | None = Field(description="Why it failed, as a sentence.")
    traceback: str | None = Field(description="The Python traceback from the function's own file on.")
    stdout: str = Field(description="What it printed.")
    stderr: str = Field(description="What it printed to standard error, and warnings of the platform.")
    attempt: int = Field(description="How often it was taken up by a worker.")
    started_at: datetime = Field(description="When its code was started; while it is queued, when it was asked for.")
    completed_at: datetime | None = Field(description="When it ended.")
    duration_ms: int | None = Field(description="How long its code ran, in milliseconds.")


class StepResponse(BaseModel):
    """An execution that another one asked for."""

    id: UUID = Field(description="Its id.")
    execution_id: str = Field(description="The same, as older clients read it.")
    step_name: str = Field(description="`namespace/name` of the function.")
    function_name: str = Field(description="`namespace/name` of the function.")
    status: Status = Field(description="Where it stands.")
    input_data: dict[str, JsonValue] = Field(description="What it was given.")
    output_data: JsonValue = Field(description="What it returned.")
    error: str | None = Field(description="Why it failed.")
    duration_ms: int | None = Field(description="How long its code ran, in milliseconds.")
    started_at: datetime = Field(description="When its code was started.")
    completed_at: datetime | None = Field(description="When it ended.")


class FunctionExecuteRequest(BaseModel):
    """What to run a function with."""

    input: dict[str, JsonValue] = Field(default={}, description="What `handler` gets as `input_data`.")
    timeout: int | None = Field(
        default=None, ge=1, le=86400, description="A time limit in seconds; only one shorter than the usual counts."
    )


class FunctionExecuteAsyncRequest(FunctionExecuteRequest):
    """What to run a function with, later."""

    trigger_id: str | None = Field(
        default=None,
        max_length=255,
        description="What you call this execution. The same again, for this function, means the same execution.",
    )
    delay_seconds: float | None = Field(
        default=None, ge=0, le=7 * 86400, description="How long to wait before it starts; at most a week."
    )
    callback_url: str | None = Field(
        default=None, description="Where the end is posted; its host must be one of `CALLBACK_ALLOWED_HOSTS`."
    )


class FunctionExecuteBatchRequest(BaseModel):
    """Many inputs for one function."""

    inputs: list[dict[str, JsonValue]] = Field(
        min_length=1, description="At most 1000; each is what `handler` gets as `input_data`."
    )
    timeout: int | None = Field(
        default=None,
        ge=1,
        le=86400,
        description="A time limit for each in seconds; only one shorter than usual counts.",
    )
    trigger_id_prefix: str | None = Field(
        default=None, max_length=240, description="Each is called so, with a hyphen and its place, counted from 0."
    )
    delay_seconds: float | None = Field(
        default=None, ge=0, le=7 * 86400, description="How long to wait before they start; at most a week."
    )
    callback_url: str | None = Field(
        default=None, description="Where the end of each is posted, as by `/execute/async`."
    )
    batch_callback_url: str | None = Field(default=None, description="Where it is posted that all have ended.")


class FunctionExecuteBatchResponse(BaseModel):
    """What to ask for later."""

    batch_id: UUID = Field(description="Ask for it with `GET /batches/{batch_id}`.")
    execution_ids: list[UUID] = Field(description="The executions, in the order of the inputs.")
    total: int = Field(description="How many there are.")
    status: Literal["queued"] = Field(description="Always `queued`.")


class FunctionExecuteResponse(BaseModel):
    """How a synchronous execution ended."""

    status: Literal["success", "error", "timeout", "awaiting_input"] = Field(description="How it ended.")
    execution_id: str = Field(description="Its record: `GET /executions/{execution_id}`.")
    result: JsonValue = Field(default=None, description="What the function returned.")
    error: str | None = Field(default=None, description="Why it failed.")
    prompt: str | None = Field(
        default=None, description="What it asks for; answer with `POST /executions/{execution_id}/continue`."
    )


class FunctionExecuteAsyncResponse(BaseModel):
    """What to ask for later."""

    execution_id: str = Field(description="Ask for it with `GET /executions/{execution_id}` or `GET /jobs/{job_id}`.")
    status: str = Field(default="queued", description="Always `queued`.")


class PresetResponse(BaseModel):
    """The schemas of functions that the platform calls from one place."""

    name: Shape = Field(description="Its name.")
    title: str = Field(description="As people call it.")
    description: str = Field(description="What such a function does.")
    input_schema: dict[str, JsonValue] = Field(description="What it is given.")
    output_schema: dict[str, JsonValue] = Field(description="What it may return; `{}` for anything.")


class ContinueExecutionRequest(BaseModel):
    """What a paused execution gets as the result of its `input()`."""

    input: dict[str, JsonValue] | str = Field(
        description="The text; of an object its only value, or that of its key `value` or `input`."
    )

    @property
    def text(self) -> str:
        """What `input()` returns. Raises `InvalidError` for an object that does not say."""
        given: JsonValue = self.input
        if isinstance(given, dict):
            key = next(iter(given)) if len(given) == 1 else "value" if "value" in given else "input"
            if key not in given:
                problem = "must be a text, or an object with one value or a key `value`"
                raise InvalidError([(("body", "input"), problem)])
            given = given[key]
        return given if isinstance(given, str) else orjson.dumps(given).decode()


class ContinueExecutionResponse(BaseModel):
    """Where the execution stands after it went on."""

    execution_id: str = Field(description="The execution.")
    status: Status = Field(description="Where it stands.")
    output_data: JsonValue = Field(default=None, description="What it returned, if it completed.")
    prompt: str | None = Field(default=None, description="What it asks for, if it paused again.")
    answer_schema: dict[str, JsonValue] | None = Field(
        default=None, alias="schema", description="What an answer looks like, if it paused again: a text."
    )


class JobResponse(BaseModel):
    """An execution as queued work."""

    job_id: str = Field(description="Its id: that of the execution.")
    execution_id: str = Field(description="The execution.")
    status: str = Field(description="`queued`, `running`, `awaiting_input`, `completed`, `failed` or `cancelled`.")
    function: str = Field(description="`namespace/name` of the function.")
    error: str | None = Field(description="Why it failed.")
    attempt: int = Field(description="How often it was taken up by a worker.")
    created_at: datetime = Field(description="When it was asked for.")
    started_at: datetime | None = Field(description="When its code was started.")
    completed_at: datetime | None = Field(description="When it ended.")


def execution_view(row: ExecutionRow) -> dict[str, object]:
    """An execution as `ExecutionResponse` has it."""
    return {
        **step_view(row),
        "function_version": row.version,
        "user_id": row.user_id,
        "trigger_type": row.trigger_type,
        "trigger_id": row.trigger_id or "",
        "parent_id": row.parent_id,
        "rerun_of": row.rerun_of,
        "batch_id": row.batch_id,
        "callback_url": row.callback_url,
        "chat_id": row.chat_id,
        "tool_call_id": row.tool_call_id,
        "prompt": row.prompt,
        "cause": row.cause,
        "traceback": row.traceback,
        "stdout": row.stdout,
        "stderr": row.stderr,
        "attempt": row.attempt,
    }


def step_view(row: ExecutionRow) -> dict[str, object]:
    """An execution as `StepResponse` has it."""
    return {
        "id": row.id,
        "execution_id": str(row.id),
        "step_name": f"{row.namespace}/{row.name}",
        "function_name": f"{row.namespace}/{row.name}",
        "status": row.status,
        "input_data": row.input_data,
        "output_data": row.output_data,
        "error": row.error,
        "duration_ms": row.duration_ms,
        "started_at": row.started_at or row.created_at,
        "completed_at": row.completed_at,
    }


def continue_view(row: Standing) -> dict[str, object]:
    """An execution as `ContinueExecutionResponse` has it."""
    return {
        "execution_id": str(row.id),
        "status": row.status,
        "output_data": row.output_data,
        "prompt": row.prompt,
        "schema": None if row.prompt is None else {"type": "string"},
    }


def result_view(row: Standing) -> dict[str, object]:
    """An execution as the answer to the one who waited for it."""
    if row.status == Status.COMPLETED:
        status = "success"
    elif row.status == Status.AWAITING_INPUT:
        return {"status": "awaiting_input", "execution_id": str(row.id), "prompt": row.prompt}
    else:
        status = "timeout" if row.cause == Cause.TIMEOUT else "error"
    return {"status": status, "execution_id": str(row.id), "result": row.output_data, "error": row.error}


def job_view(row: ExecutionRow) -> dict[str, object]:
    """An execution as `JobResponse` has it."""
    return {
        "job_id": str(row.id),
        "execution_id": str(row.id),
        "status": JOB_STATES[row.status],
        "function": f"{row.namespace}/{row.name}",
        "error": row.error,
        "attempt": row.attempt,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "completed_at": row.completed_at,
    }

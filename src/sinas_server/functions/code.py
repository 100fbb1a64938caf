"""Running code that is no stored function: what an agent's system tool `codeExecution` does.

It is an execution like any other: listed, canceled, limited and recorded, with `function_id` null and the code in its
input. The code gets no access token, so it can work on what it was given and nothing else of the platform: whoever
talks a model into writing bad code must not gain the rights of the user it writes for.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import cast
from uuid import UUID

from pydantic import JsonValue

from sinas_server.backends.sandbox import Egress
from sinas_server.functions import execute
from sinas_server.functions.execute import Order
from sinas_server.functions.kind import MAX_CODE, FunctionSpec
from sinas_server.functions.source import syntax_problem
from sinas_server.functions.tables import ExecutionRow, Trigger
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import InvalidError, Location
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import CallIdentity
from sinas_server.kit.json import MAX_DEPTH, has_nul, is_deeper

NAMESPACE, NAME = "system", "codeExecution"
"""What such an execution is called in lists; its `function_id` is null."""
LIMIT_NAME = "code"
MAX_FILES = 20 << 20
"""The most base64 characters of all files together."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Python to run once. Its result is the value of its last expression, or else of its variable `result`."""

    source: str
    variables: Mapping[str, JsonValue] = field(default_factory=dict)
    """Its global variables, by name."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files of its working directory: relative path → base64."""
    egress: Egress | None = None
    """What it may reach, if that is less than `FUNCTION_EGRESS`."""
    timeout: int | None = None
    """A shorter limit than `CODE_EXECUTION_TIMEOUT`, in seconds."""


async def run_code(runtime: Runtime, caller: Caller, code: Code, call: CallIdentity | None = None) -> ExecutionRow:
    """Run code for a caller and give its execution as it ended; asks for no permission.

    With the identity of a tool call, a second call finds the execution of the first, running or ended, and starts
    none. `status` says how it ended; `output_data`, `stdout`, `stderr`, `error` and `traceback` hold what came of it.
    Canceling the awaiting task leaves it running: see `cancel.cancel_executions`. Raises `InvalidError` for code
    that Python cannot parse and for names and files that cannot be used, and `BadRequestError` when nested too deeply.
    """
    row = None if call is None else await execute.of_call(runtime, call)
    execution_id = await start_code(runtime, caller, code, call) if row is None else row.id
    return row if row is not None and row.has_stopped else await execute.wait_for_end(runtime, execution_id)


async def start_code(runtime: Runtime, caller: Caller, code: Code, call: CallIdentity | None = None) -> UUID:
    """Like `run_code`, without waiting; gives the execution's id."""
    problems = list(_problems(code))
    if problems:
        raise InvalidError(problems)
    given: dict[str, JsonValue] = {
        "code": code.source,
        "variables": dict(code.variables),
        "files": dict(code.files),
        "egress": code.egress,
    }
    order = Order(
        trigger=Trigger.API if call is None else Trigger.AGENT, input=given, waits=True, timeout=code.timeout, call=call
    )
    values = {
        **execute.parameters(caller, order, (runtime.settings.code_execution_timeout, LIMIT_NAME)),
        "new_function_id": None,
        "new_function_owner_id": None,
        "new_namespace": NAMESPACE,
        "new_name": NAME,
        "new_version": 0,
    }
    return await execute.store_now(runtime, caller, order, values)


def as_function(row: ExecutionRow) -> FunctionSpec:
    """The code of such an execution as a function that declares nothing."""
    given = row.input_data
    return FunctionSpec.model_construct(code=cast(str, given["code"]), egress=cast(Egress | None, given["egress"]))


def script_input(row: ExecutionRow) -> JsonValue:
    """What the sandbox gives to the code of such an execution."""
    return {"variables": row.input_data["variables"], "files": row.input_data["files"]}


def _problems(code: Code) -> Iterator[tuple[Location, str]]:
    problem = syntax_problem(code.source)
    if problem:
        yield ("code",), problem
    if len(code.source) > MAX_CODE:
        yield ("code",), f"is too long: at most {MAX_CODE} characters"
    if has_nul(dict(code.variables)) or is_deeper(dict(code.variables), MAX_DEPTH):
        yield ("variables",), f"hold NUL characters, or are nested more than {MAX_DEPTH} deep"
    for name in code.variables:
        if not name.isidentifier():
            yield ("variables", name), "is not a name that a Python variable can have"
    if sum(map(len, code.files.values())) > MAX_FILES:
        yield ("files",), f"are too large: at most {MAX_FILES} characters of base64 together"
    for path, content in code.files.items():
        if not path or has_nul(path) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            yield ("files", path), "is not a relative path"
        elif not _is_base64(content):
            yield ("files", path), "is not base64"


def _is_base64(content: str) -> bool:
    try:
        base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True

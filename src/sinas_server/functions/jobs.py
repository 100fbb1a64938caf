"""Running queued executions: claim, token, sandbox, checks, and one end that is stored exactly once."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import TypeVar

import orjson
import structlog
from pydantic import JsonValue
from sqlalchemy import (
    Boolean,
    Executable,
    Float,
    Integer,
    String,
    Uuid,
    bindparam,
    case,
    func,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db import is_lost
from sinas_server.backends.sandbox import (
    Egress,
    Ending,
    Limits,
    OnOutput,
    Outcome,
    Sandbox,
    SandboxBusy,
    SandboxUnavailable,
    Task,
)
from sinas_server.functions.code import LIMIT_NAME, as_function, script_input
from sinas_server.functions.concurrency import admit
from sinas_server.functions.execute import Standing, topic
from sinas_server.functions.kind import FunctionSpec, legacy_entry_point
from sinas_server.functions.live_log import LiveLog
from sinas_server.functions.tables import QUEUE, Cause, ExecutionRow, Status, Trigger
from sinas_server.identity.execution_grants import closing_grants, mint_grant, opening_grants
from sinas_server.identity.resolve import Principal
from sinas_server.kernel.job import Claim, Job, wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.secret import SecretContext
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kit.schema import violations

log = structlog.get_logger()
T = TypeVar("T")

MAX_LOST = 5
"""An execution that outlives this many workers is taken for their killer."""
TOKEN_MARGIN_SECONDS = 30.0
"""How much longer than the execution and the wait for its sandbox the token may live, if closing it should fail."""
LIMIT_NAMES = {
    "function": "the function's own timeout",
    "request": "the request's timeout",
    LIMIT_NAME: "CODE_EXECUTION_TIMEOUT",
}
STRICTEST_FIRST: tuple[Egress, ...] = ("none", "list", "public")
CAUSES = {
    Ending.ERROR: Cause.ERROR,
    Ending.TIMEOUT: Cause.TIMEOUT,
    Ending.MEMORY: Cause.LIMIT,
    Ending.OUTPUT_TOO_LARGE: Cause.LIMIT,
    Ending.DIED: Cause.LIMIT,
}


_KEPT = (ResourceRow.id == ExecutionRow.function_id, ResourceRow.deleted_at.is_(None))
_OURS = (
    ExecutionRow.id == bindparam("our_id", type_=Uuid),
    ExecutionRow.attempt == bindparam("our_attempt", type_=Integer),
    ExecutionRow.status == literal_column("'RUNNING'"),
)


def _beginning() -> Executable:
    """Notes the start and opens the grant; gives the function's spec, null if it was deleted."""
    version = select(ResourceRow.version).where(*_KEPT).scalar_subquery()
    begun = (
        update(ExecutionRow)
        .where(*_OURS)
        .values(started_at=func.now(), version=func.coalesce(version, ExecutionRow.version))
        .returning(ExecutionRow.id, select(ResourceRow.spec).where(*_KEPT).scalar_subquery().label("spec"))
        .cte("begun")
    )
    return select(begun.c.spec).add_cte(opening_grants(select(begun.c.id)).cte("granted"))


def _ending(values: Mapping[str, object]) -> Executable:
    """Stores what came of an attempt and voids its token; gives the id if the row was still ours."""
    columns = ExecutionRow.__table__.columns
    outcome = {
        "status": bindparam("end_status", type_=String),
        "output_data": bindparam("end_output", type_=columns["output_data"].type),
        "failures": ExecutionRow.failures + bindparam("end_failures", type_=Integer),
        "lease_until": null(),
    }
    for name in ("cause", "error", "traceback", "stdout", "stderr", "duration_ms"):
        outcome[name] = bindparam(f"end_{name}", type_=columns[name].type)
    done = update(ExecutionRow).where(*_OURS).values(**outcome, **values).returning(ExecutionRow.id).cte("done")
    return select(done.c.id).add_cte(closing_grants(select(done.c.id)).cte("closed"))


_BEGIN = _beginning()
_FINISH = _ending(
    {"completed_at": func.now(), "dead_at": case((bindparam("end_dead", type_=Boolean), func.now()), else_=null())}
)
_RETRY = _ending(
    {
        "started_at": null(),
        "held": ExecutionRow.max_concurrency.is_not(None),
        "run_at": func.now() + func.make_interval(0, 0, 0, 0, 0, 0, bindparam("retry_seconds", type_=Float)),
    }
)


def _putting_back() -> Executable:
    """Makes the row as it was before this attempt, which counts neither as a failure nor as a worker that was lost."""
    uncounted = {"failures": ExecutionRow.failures + 1, "max_retries": ExecutionRow.max_retries + 1}
    waiting = {"status": Status.PENDING.value, "lease_until": null(), "started_at": null()}
    back = update(ExecutionRow).where(*_OURS).values(**waiting, **uncounted).returning(ExecutionRow.id).cte("back")
    return select(back.c.id).add_cte(closing_grants(select(back.c.id)).cte("closed"))


_PUT_BACK = _putting_back()


def _ours(row: ExecutionRow) -> dict[str, object]:
    return {"our_id": row.id, "our_attempt": row.attempt}


@dataclass(frozen=True)
class End:
    """How one attempt ended."""

    output: JsonValue = None
    cause: Cause | None = None
    """None for success."""
    error: str | None = None
    traceback: str | None = None
    stdout: str = ""
    stderr: str = ""
    duration_ms: int | None = None
    final: bool = False
    """Whether trying again would be no use, or not safe."""


@dataclass(frozen=True)
class Begun:
    """What an attempt needs once it is known to be ours; no function if it was deleted."""

    function: FunctionSpec | None
    token: str


async def run(runtime: Runtime, claim: Claim[ExecutionRow]) -> None:
    """Take an execution to its end, or to its next attempt.

    One for which no sandbox became free within `POOL_ACQUIRE_TIMEOUT` goes back to its place in the queue, so that
    another worker may have it: who waits for it waits on.
    """
    begun = await _patiently(lambda: _begin(runtime, claim.row))
    if begun is None:  # canceled, or taken over
        return
    live_log = LiveLog(runtime, claim.row)
    try:
        end = await _attempt(runtime, claim, begun, live_log.on_output)
    except SandboxBusy:
        await _patiently(lambda: runtime.database.direct(_PUT_BACK, _ours(claim.row)))
        await wake(runtime, QUEUE, claim.row.depth)
    else:
        await _patiently(lambda: _finish(runtime, claim.row, end))
    finally:
        await live_log.close()


async def fail(runtime: Runtime, claim: Claim[ExecutionRow], error: str) -> None:
    """Store the end of an attempt that we, not its code, failed; the log has the reason."""
    end = End(cause=Cause.INTERNAL, error=f"Internal error while running execution {claim.row.id}")
    await _patiently(lambda: _finish(runtime, claim.row, end))


EXECUTION_JOB = Job(queue=QUEUE, table=ExecutionRow, run=run, fail=fail)


async def _patiently(step: Callable[[], Awaitable[T]]) -> T:
    """A step of ours, repeated while the database is away: an execution must not be lost by its restart.

    It ends at the latest when the worker finds that the row is no longer its own, and cancels.
    """
    pause = 0.1
    while True:
        try:
            return await step()
        except SQLAlchemyError as error:
            if not is_lost(error):
                raise
            log.warning("waiting for the database", error=str(error).partition("\n")[0])
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)


async def _begin(runtime: Runtime, row: ExecutionRow) -> Begun | None:
    """Note that the code starts now, and open its access token; None if the row is no longer ours."""
    owners = tuple(dict.fromkeys([*row.owner_ids, *([row.function_owner_id] if row.function_owner_id else [])]))
    principal = Principal(row.user_id, row.api_key_id, owners, row.depth + 1)
    longest = runtime.settings.pool_acquire_timeout + row.timeout + TOKEN_MARGIN_SECONDS
    token, parameters = mint_grant(runtime, row.id, principal, longest)
    found = await runtime.database.direct(_BEGIN, {**parameters, **_ours(row)})
    if not found:
        return None
    if row.function_id is None:
        return Begun(as_function(row), token)
    if found[0].spec is None:
        return Begun(None, token)
    stored = SecretContext("sealed", runtime.database.sealer)
    return Begun(FunctionSpec.model_validate(FunctionSpec.upgrade(found[0].spec), context=stored), token)


async def _attempt(runtime: Runtime, claim: Claim[ExecutionRow], begun: Begun, on_output: OnOutput) -> End:
    """Run the code once, unless that is not safe. Raises `SandboxBusy`."""
    row, function = claim.row, begun.function
    lost = row.attempt - 1 - row.failures
    if function is None:
        return End(cause=Cause.FUNCTION, error=f"Function '{row.namespace}/{row.name}' was deleted", final=True)
    if claim.interrupted and lost > MAX_LOST:
        error = f"Gave up: {lost} workers were lost while running it"
        return End(cause=Cause.INTERRUPTED, error=error, final=True)
    # `started_at` is that of the earlier attempt, as it was claimed: without it no code had run.
    may_repeat = row.trigger_type != Trigger.AGENT or function.idempotent or row.started_at is None
    if claim.interrupted and not may_repeat:
        error = "interrupted, outcome unknown: its worker was lost while the function ran, and it was not run again"
        return End(cause=Cause.INTERRUPTED, error=error, final=True)
    began = monotonic()
    try:
        outcome = await _sandbox(runtime).run(_task(runtime, row, function, begun.token), on_output)
    except SandboxUnavailable as error:
        return End(cause=Cause.INTERNAL, error=str(error))
    end = _judged(row, function, outcome)
    return replace(end, duration_ms=round((monotonic() - began) * 1000))


def _sandbox(runtime: Runtime) -> Sandbox:
    if runtime.sandbox is None:
        raise SandboxUnavailable("this process was started without a sandbox")
    return runtime.sandbox


def _task(runtime: Runtime, row: ExecutionRow, function: FunctionSpec, token: str) -> Task:
    settings = runtime.settings
    is_code = row.function_id is None
    context: dict[str, JsonValue] = {
        "user_id": str(row.user_id),
        "user_email": row.user_email,
        "access_token": token,
        "execution_id": str(row.id),
        "trigger_type": row.trigger_type,
        "chat_id": str(row.chat_id or ""),
        "secrets": {},
    }
    return Task(
        code=function.code,
        entry_points=() if is_code else tuple(dict.fromkeys(("handler", legacy_entry_point(row.name)))),
        input=script_input(row) if is_code else row.input_data,
        context={} if is_code else context,
        limits=Limits(
            wall_seconds=row.timeout,
            memory_bytes=settings.max_function_memory << 20,
            cpus=settings.max_function_cpu,
        ),
        egress=_stricter(settings.function_egress, function.egress),
        filename=f"{row.namespace}/{row.name}.py",
    )


def _stricter(setting: Egress, own: Egress | None) -> Egress:
    """What a function may reach: what it asks for, within what the operator allows."""
    return min(setting, own or setting, key=STRICTEST_FIRST.index)


def _judged(row: ExecutionRow, function: FunctionSpec, outcome: Outcome) -> End:
    """What the sandbox reports, checked against what was declared."""
    stderr = outcome.stderr
    if outcome.entry_point not in (None, "handler"):
        log.warning("legacy entry point", function=f"{row.namespace}/{row.name}", entry_point=outcome.entry_point)
        stderr += f"DeprecationWarning: rename the function '{outcome.entry_point}' to 'handler'\n"
    end = End(stdout=_text(outcome.stdout), stderr=_text(stderr))
    if outcome.ending is not Ending.OK:
        error = _time_limit(row) if outcome.ending is Ending.TIMEOUT else _text(outcome.error or outcome.ending)
        trace = _text(outcome.traceback) if outcome.traceback else None
        return replace(end, cause=CAUSES[outcome.ending], error=error, traceback=trace)
    found = violations(function.output_schema, outcome.result)
    if found:
        problems = "; ".join(str(problem) for problem in found)
        return replace(end, cause=Cause.OUTPUT, error=f"The result does not match output_schema: {_text(problems)}")
    return replace(end, output=outcome.result)


def _time_limit(row: ExecutionRow) -> str:
    return f"Time limit exceeded: {row.timeout:g} seconds ({LIMIT_NAMES.get(row.timeout_from, 'FUNCTION_TIMEOUT')})"


def _text(text: str) -> str:
    """Text that PostgreSQL can hold."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


async def _finish(runtime: Runtime, row: ExecutionRow, end: End) -> None:
    """Store the end, or the wait for another attempt, if the row is still ours; then tell who waits."""
    failed = end.cause is not None
    again = failed and not end.final and row.max_retries is not None and row.failures < row.max_retries
    final = Status.FAILED if failed else Status.COMPLETED
    standing = Standing(row.id, final, end.cause, end.error, end.output)
    parameters = {
        **_ours(row),
        "end_status": (Status.PENDING if again else final).value,
        "end_output": None if end.output is None else orjson.dumps(end.output).decode(),
        "end_cause": end.cause.value if end.cause else None,
        "end_error": end.error,
        "end_traceback": end.traceback,
        "end_stdout": end.stdout,
        "end_stderr": end.stderr,
        "end_duration_ms": end.duration_ms,
        "end_failures": 1 if failed else 0,
    }
    if again:
        parameters["retry_seconds"] = runtime.settings.queue_retry_delay
    else:
        parameters["end_dead"] = failed and row.max_retries is not None
    ended = await runtime.database.direct(_RETRY if again else _FINISH, parameters)
    if ended and not again:
        await runtime.signals.signal(topic(row.id), standing.note())
    if row.max_concurrency is not None and row.function_id is not None:
        await admit(runtime, row.function_id)

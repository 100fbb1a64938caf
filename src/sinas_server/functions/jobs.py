"""Running queued executions: claim, token, sandbox, checks, and one end that is stored exactly once."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from time import monotonic

import orjson
import structlog
from pydantic import JsonValue
from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Executable,
    Float,
    Integer,
    String,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from sinas_server.backends.sandbox import (
    Egress,
    Ending,
    OnOutput,
    Outcome,
    Sandbox,
    SandboxBusy,
    SandboxLost,
    SandboxUnavailable,
    Task,
)
from sinas_server.backends.sandbox.config import limits
from sinas_server.functions.code import LIMIT_NAME, as_function, script_input
from sinas_server.functions.concurrency import admit
from sinas_server.functions.execute import OURS, Standing, ours, topic
from sinas_server.functions.kind import SHARED_POOL, FunctionSpec
from sinas_server.functions.live_log import LiveLog
from sinas_server.functions.patience import patiently
from sinas_server.functions.source import legacy_entry_point
from sinas_server.functions.tables import QUEUE, Cause, ExecutionRow, Status, Trigger
from sinas_server.functions.trusted import TrustedHost, find_owner
from sinas_server.identity.execution_grants import closing_grants, grant_token, opening_grants
from sinas_server.identity.resolve import holder, rights_of
from sinas_server.identity.tokens import ExecutionToken
from sinas_server.kernel.job import Claim, InterruptedWorkError, Job, wake
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.secret import SecretContext
from sinas_server.kernel.tables import ResourceRow
from sinas_server.kit.cancel import to_the_end
from sinas_server.kit.schema import violations
from sinas_server.kit.texts import storable

log = structlog.get_logger()

KNOWN_FUNCTIONS = 64
"""How many functions a worker keeps parsed."""
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


_AGENTS: ColumnElement[str] = literal_column(f"'{Trigger.AGENT.value}'")
_KEPT = (ResourceRow.id == ExecutionRow.function_id, ResourceRow.deleted_at.is_(None))


def _beginning(claiming: ReturningUpdate[*tuple[object, ...]]) -> Executable:
    """Has the claim note the start, open the grant and read the function; nulls for a user or function that is gone.

    The start of an agent's call is noted apart (`_begin`), because one that has begun may not be repeated.
    """
    version = select(ResourceRow.version).where(*_KEPT).scalar_subquery()
    started = case((ExecutionRow.trigger_type == _AGENTS, ExecutionRow.started_at), else_=func.now())
    version_now = func.coalesce(version, ExecutionRow.version)
    claimed = claiming.values(started_at=started, version=version_now).cte("claimed")
    row = claimed.c
    begun = select(row.id, row.user_id, row.api_key_id, _owners(claimed), row.depth + 1, _expiry(claimed))
    granted = opening_grants(begun).cte("granted")
    return (
        select(*row, granted.c.token_id, granted.c.expires_at, cast(ResourceRow.spec, Text).label("spec"))
        .add_columns(case((row.shared_pool, rights_of(row.function_owner_id))).label("owner"))
        .outerjoin(granted, granted.c.execution_id == row.id)
        .outerjoin(ResourceRow, and_(ResourceRow.id == row.function_id, ResourceRow.deleted_at.is_(None)))
    )


def _owners(claimed: CTE) -> ColumnElement[object]:
    """Whose rights limit the execution: the owner of its function beside those of the functions that wait for it."""
    row = claimed.c
    own = row.function_owner_id
    return case(
        (or_(own.is_(None), own == any_(row.owner_ids)), row.owner_ids), else_=func.array_append(row.owner_ids, own)
    )


def _expiry(claimed: CTE) -> ColumnElement[datetime]:
    row = claimed.c
    more = case((row.shared_pool, bindparam("input_seconds", type_=Float)), else_=literal_column("0"))
    seconds = row.timeout + bindparam("extra_seconds", type_=Float) + more
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _longest(runtime: Runtime) -> dict[str, object]:
    """The parameters of `_expiry`."""
    settings = runtime.settings
    waits = settings.pool_acquire_timeout + TOKEN_MARGIN_SECONDS
    return {"extra_seconds": float(waits), "input_seconds": float(settings.function_input_timeout)}


def _ending(values: Mapping[str, object]) -> Executable:
    """Stores what came of an attempt and voids its token; gives the id if the row was still ours."""
    columns = ExecutionRow.__table__.columns
    outcome = {
        "status": bindparam("end_status", type_=String),
        "output_data": bindparam("end_output", type_=columns["output_data"].type),
        "failures": ExecutionRow.failures + bindparam("end_failures", type_=Integer),
        "lease_until": null(),
        "prompt": null(),
        "answer": null(),
    }
    for name in ("cause", "error", "traceback", "stdout", "stderr", "duration_ms"):
        outcome[name] = bindparam(f"end_{name}", type_=columns[name].type)
    done = update(ExecutionRow).where(*OURS).values(**outcome, **values).returning(ExecutionRow.id).cte("done")
    return select(done.c.id).add_cte(closing_grants(select(done.c.id)).cte("closed"))


_BEGIN = update(ExecutionRow).where(*OURS).values(started_at=func.now()).returning(ExecutionRow.id)
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
    back = update(ExecutionRow).where(*OURS).values(**waiting, **uncounted).returning(ExecutionRow.id).cte("back")
    return select(back.c.id).add_cte(closing_grants(select(back.c.id)).cte("closed"))


_PUT_BACK = _putting_back()


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


async def run(runtime: Runtime, claim: Claim[ExecutionRow]) -> None:
    """Take an execution to its end, or to its next attempt.

    One for which no sandbox became free within `POOL_ACQUIRE_TIMEOUT` goes back to its place in the queue.
    """
    if claim.row.trigger_type == Trigger.AGENT and not await patiently(lambda: _begin(runtime, claim.row)):
        return  # canceled, or taken over
    live_log = LiveLog(runtime, claim.row)
    try:
        end = await _attempt(runtime, claim, live_log.on_output)
    except SandboxBusy:
        await patiently(lambda: runtime.database.direct(_PUT_BACK, ours(claim.row)))
        await wake(runtime, QUEUE, claim.row.depth)
    except asyncio.CancelledError:
        await to_the_end(leave_room(runtime, claim.row))
        raise
    else:
        await patiently(lambda: _finish(runtime, claim.row, end))
    finally:
        await live_log.close()


async def leave_room(runtime: Runtime, row: ExecutionRow) -> None:
    """Let another execution of a limited function begin, after this one has ended or been killed."""
    if row.max_concurrency is not None and row.function_id is not None:
        await admit(runtime, row.function_id)


async def fail(runtime: Runtime, claim: Claim[ExecutionRow], error: str) -> None:
    """Store the end of an attempt that we, not its code, failed; the log has the reason."""
    end = End(cause=Cause.INTERNAL, error=f"Internal error while running execution {claim.row.id}")
    await patiently(lambda: _finish(runtime, claim.row, end))


EXECUTION_JOB = Job(QUEUE, ExecutionRow, run, fail, claiming=_beginning, parameters=_longest)


async def _begin(runtime: Runtime, row: ExecutionRow) -> bool:
    """Note that the code starts now; whether the row is still ours."""
    return bool(await runtime.database.direct(_BEGIN, ours(row)))


@lru_cache(maxsize=KNOWN_FUNCTIONS)
def _function_of(spec: str) -> FunctionSpec:
    """The function that a stored text means."""
    return FunctionSpec.model_validate(FunctionSpec.upgrade(orjson.loads(spec)), context=SecretContext("sealed"))


def _function(claim: Claim[ExecutionRow]) -> FunctionSpec | None:
    """What is to run; None if it was deleted."""
    if claim.row.function_id is None:
        return as_function(claim.row)
    return None if claim.found["spec"] is None else _function_of(claim.found["spec"])


async def _attempt(runtime: Runtime, claim: Claim[ExecutionRow], on_output: OnOutput) -> End:
    """Run the code once, unless that is not safe. Raises `SandboxBusy`."""
    row, function = claim.row, _function(claim)
    lost = row.attempt - 1 - row.failures
    if claim.found["token_id"] is None:
        return End(cause=Cause.FUNCTION, error="The user for whom it was to run was deleted", final=True)
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
    if row.pauses and claim.interrupted:
        error = "Its worker was lost after it had asked for input; it was not asked again, so run it anew"
        return End(cause=Cause.INTERRUPTED, error=error, final=True)
    token = ExecutionToken(row.id, claim.found["token_id"])
    task = _task(runtime, row, function, grant_token(runtime, token, claim.found["expires_at"]))
    if function.shared_pool:
        return await _run_trusted(runtime, claim, function, task, on_output)
    return await _run_sandboxed(runtime, row, function, task, on_output)


async def _run_sandboxed(
    runtime: Runtime, row: ExecutionRow, function: FunctionSpec, task: Task, on_output: OnOutput
) -> End:
    began = monotonic()
    try:
        outcome = await _driver(runtime.sandbox).run(task, on_output)
    except SandboxUnavailable as error:
        return End(cause=Cause.INTERNAL, error=str(error))
    return replace(_judged(row, function, outcome), duration_ms=_since(began))


async def _run_trusted(
    runtime: Runtime, claim: Claim[ExecutionRow], function: FunctionSpec, task: Task, on_output: OnOutput
) -> End:
    """The same in the shared pool, whose workers run others beside it: one that is lost is no fault of its code."""
    row, rights = claim.row, claim.found["owner"]
    # One that was to run in a sandbox when it was asked for was claimed without looking at its owner.
    owner = holder(rights) if rights else None if row.shared_pool else await find_owner(runtime, row.function_owner_id)
    if owner is None or not owner.has(SHARED_POOL):
        error = f"Function '{row.namespace}/{row.name}' may not run as trusted code: its owner needs {SHARED_POOL}"
        return End(cause=Cause.FUNCTION, error=error, final=True)
    host = TrustedHost(runtime, claim, owner)
    began = monotonic()
    try:
        outcome = await _driver(runtime.shared_pool).run(replace(task, host=host), on_output)
    except SandboxUnavailable as error:
        return End(cause=Cause.INTERNAL, error=str(error))
    except SandboxLost as error:
        if not host.has_asked:
            raise InterruptedWorkError(str(error)) from error
        lost = f"Interrupted after it had asked for input: {error}"
        return End(cause=Cause.INTERRUPTED, error=lost, final=True)
    return replace(_judged(row, function, outcome), duration_ms=_since(began + host.waited))


def _since(began: float) -> int:
    """Milliseconds."""
    return round((monotonic() - began) * 1000)


def _driver(sandbox: Sandbox | None) -> Sandbox:
    if sandbox is None:
        raise SandboxUnavailable("this process was started without a sandbox")
    return sandbox


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
        limits=limits(settings, row.timeout),
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
    end = End(stdout=storable(outcome.stdout), stderr=storable(stderr))
    if outcome.ending is not Ending.OK:
        error = _time_limit(row) if outcome.ending is Ending.TIMEOUT else storable(outcome.error or outcome.ending)
        trace = storable(outcome.traceback) if outcome.traceback else None
        return replace(end, cause=CAUSES[outcome.ending], error=error, traceback=trace)
    found = violations(function.output_schema, outcome.result)
    if found:
        problems = "; ".join(str(problem) for problem in found)
        return replace(end, cause=Cause.OUTPUT, error=f"The result does not match output_schema: {storable(problems)}")
    return replace(end, output=outcome.result)


def _time_limit(row: ExecutionRow) -> str:
    return f"Time limit exceeded: {row.timeout:g} seconds ({LIMIT_NAMES.get(row.timeout_from, 'FUNCTION_TIMEOUT')})"


async def _finish(runtime: Runtime, row: ExecutionRow, end: End) -> None:
    """Store the end, or the wait for another attempt, if the row is still ours; then tell who waits."""
    failed = end.cause is not None
    again = failed and not end.final and row.max_retries is not None and row.failures < row.max_retries
    final = Status.FAILED if failed else Status.COMPLETED
    standing = Standing(row.id, final, end.cause, end.error, end.output)
    parameters = {
        **ours(row),
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
    await leave_room(runtime, row)

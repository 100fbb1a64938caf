"""From what a sandbox sent and how it ended to the outcome a user reads."""

import signal
from dataclasses import dataclass, field

from pydantic import JsonValue

from sinas_server.backends.sandbox import Ending, Limits, Outcome, Task
from sinas_server.kit.json import BadJsonError, parse

MAX_ERROR = 4_000
MAX_TRACEBACK = 70_000
_STATUS = {"ok": Ending.OK, "error": Ending.ERROR, "memory": Ending.MEMORY, "too_large": Ending.OUTPUT_TOO_LARGE}


@dataclass(frozen=True)
class Exit:
    """How an execution's process ended."""

    signal: int | None
    code: int | None
    restarted: bool = False
    """What made the sandbox ended, not this execution by itself."""


@dataclass
class Evidence:
    """What the host saw of one execution."""

    reply: bytes | None = None
    """The JSON the guest sent; not to be trusted: user code can write to the same descriptor."""
    timed_out: bool = False
    oversized: bool = False
    """The guest announced more than it may send."""
    broken: bool = False
    """What came is not a message."""
    out_of_memory: bool = False
    out_of_cpu: bool = False
    exit: Exit | None = None
    stdout: str = field(default="")
    stderr: str = field(default="")


def megabytes(count: int) -> str:
    """A limit as people write it."""
    return f"{count / (1 << 20):g} MB"


def conclude(task: Task, seen: Evidence) -> Outcome:
    """The outcome of an execution."""
    reply = _parse(seen.reply) or {}
    ending = _ending(reply, seen)
    error = None
    if ending is not Ending.OK:
        error = _limit_message(task.limits, ending, seen) or _text(reply.get("error"), MAX_ERROR) or _cause(seen)
    entry_point = _text(reply.get("entry_point"), MAX_ERROR)
    return Outcome(
        ending=ending,
        result=reply.get("result") if ending is Ending.OK else None,
        error=error,
        traceback=_text(reply.get("traceback"), MAX_TRACEBACK),
        stdout=seen.stdout,
        stderr=seen.stderr,
        entry_point=entry_point if entry_point in task.entry_points else None,
    )


def _ending(reply: dict[str, JsonValue], seen: Evidence) -> Ending:
    """What the host or the kernel ended comes before what the guest says, but for a finished result."""
    said = _STATUS.get(str(reply.get("status")), Ending.DIED)
    if seen.timed_out:
        return Ending.TIMEOUT
    if seen.oversized:
        return Ending.OUTPUT_TOO_LARGE
    if seen.out_of_memory and said is not Ending.OK:
        return Ending.MEMORY
    return said


def _limit_message(limits: Limits, ending: Ending, seen: Evidence) -> str | None:
    if ending is Ending.DIED and seen.out_of_cpu:
        return f"the CPU limit of {limits.cpus * limits.wall_seconds:g} CPU seconds was hit"
    messages = {
        Ending.TIMEOUT: f"the time limit of {limits.wall_seconds:g} s was hit",
        Ending.MEMORY: f"the memory limit of {megabytes(limits.memory_bytes)} was hit",
        Ending.OUTPUT_TOO_LARGE: f"the result is larger than the limit of {megabytes(limits.result_bytes)}",
    }
    return messages.get(ending)


def _cause(seen: Evidence) -> str:
    """Why there is no reply."""
    if seen.broken or seen.reply is not None:
        return "the sandbox sent something that is not a result"
    ended = seen.exit
    if ended is not None and ended.restarted:
        return "the sandbox was restarted while this ran"
    if ended is not None and ended.signal is not None:
        name = signal.Signals(ended.signal).name if ended.signal in set(signal.Signals) else str(ended.signal)
        hint = {"SIGSEGV": ": a crash in native code or a stack overflow", "SIGKILL": ", for example at the CPU limit"}
        return f"the process was killed by {name}{hint.get(name, '')}"
    code = "" if ended is None or ended.code is None else f" with exit code {ended.code}"
    return f"the process ended{code} without returning a result"


def _parse(body: bytes | None) -> dict[str, JsonValue] | None:
    if body is None:
        return None
    try:
        reply = parse(body)
    except BadJsonError as error:  # nested absurdly, NUL, lone surrogates; or not from our guest at all
        return {"status": "error", "error": f"the result cannot be returned: {error}"}
    if not isinstance(reply, dict) or reply.get("status") not in _STATUS:
        return None
    return reply


def _text(value: JsonValue, most: int) -> str | None:
    return value[:most] if isinstance(value, str) else None

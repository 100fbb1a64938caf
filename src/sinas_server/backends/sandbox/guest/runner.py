"""Run one request inside an already confined process: execute the code, call the handler, send what came of it."""

import builtins
import contextlib
import inspect
import io
import json
import linecache
import os
import resource
import sys
import types
from collections.abc import Callable
from typing import BinaryIO, Final, NoReturn, TypedDict, cast

from . import frames, report, script

CHANNEL: Final = 3
"""The descriptor of the private socket to the host."""


class Request(TypedDict):
    """What the host sends to a ready sandbox."""

    code: str
    filename: str
    entry_points: list[str]
    """None of them: the code is a script."""
    input: object
    context: dict[str, object]
    env: dict[str, str]
    cpu_seconds: int
    result_bytes: int


class Reply(TypedDict, total=False):
    """What the host gets back; `result` is added as ready-made JSON."""

    status: str  # ok, error, memory, too_large
    error: str
    traceback: str | None
    entry_point: str | None


Handler = Callable[[object, object], object]


class _RefusedError(Exception):
    """The code or its result breaks a rule of the platform; there is no traceback to show."""


def serve(scratch: str) -> NoReturn:
    """Wait for the request, run it with `scratch` for temporary files, answer, and end the process with all threads."""
    _prepare(scratch)
    warm()  # copies the pages it writes to, which would otherwise happen when the caller waits
    try:
        body = frames.read(CHANNEL)
    except EOFError:
        os._exit(0)
    request: Request = json.loads(body)
    del body
    _receive(request)
    reply = answer(request, lambda request, reply: _call(request, reply, scratch))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the user's code may have replaced or closed it
            stream.flush()
    frames.write_all(CHANNEL, frames.pack(reply))
    os._exit(0)


def warm() -> None:
    """Do once what every execution does, so that its memory is in place."""
    space: dict[str, object] = {}
    exec(compile("def handler(input_data, context):\n    return input_data", "<warm>", "exec"), space)  # noqa: S102 - our own constant
    json.loads(json.dumps({"a": [1, 1.5, None, "x"]}))


def _prepare(scratch: str) -> None:
    """Everything that does not depend on the request."""
    os.environ.clear()
    os.environ.update({"HOME": scratch, "TMPDIR": scratch, "PATH": "", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"})
    for fd, name in ((1, "stdout"), (2, "stderr")):
        # Unbuffered: what was printed before a time limit or a crash is there to be read.
        raw = cast(BinaryIO, io.FileIO(fd, "w", closefd=False))
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    builtins.input = _no_input


def _receive(request: Request) -> None:
    os.environ.update(request["env"])
    seconds = request["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    sys.argv = [request["filename"]]


def _no_input(_prompt: object = "", /) -> str:
    raise RuntimeError("input() is not available in the sandbox: nobody can answer here. Pass the value as input.")


def answer(request: Request, call: Callable[[Request, Reply], object]) -> bytes:
    """The reply as JSON, whatever the user's code does; `call` gives its value, and notes the entry point."""
    reply: Reply = {"entry_point": None, "traceback": None}
    result = b"null"
    try:
        value = call(request, reply)
        if inspect.isawaitable(value):
            value = _finish(value)
        result = _encode(value)
        reply["status"] = "ok" if len(result) <= request["result_bytes"] else "too_large"
    except _RefusedError as error:
        reply |= {"status": "error", "error": str(error)}
    except BaseException as error:  # noqa: BLE001 - the edge of the user's code: SystemExit and KeyboardInterrupt too
        status = "memory" if isinstance(error, MemoryError) else "error"
        reply |= {"status": status, "error": _say(error), "traceback": _trace(error, request["filename"])}
    if reply["status"] != "ok":
        return json.dumps(reply).encode()
    return json.dumps(reply).encode()[:-1] + b', "result": ' + result + b"}"


def _call(request: Request, reply: Reply, scratch: str) -> object:
    if not request["entry_points"]:
        return script.run(request["code"], request["filename"], request["input"], scratch)
    return call_handler(execute(request, report.MODULE), request, reply)


def call_handler(module: types.ModuleType, request: Request, reply: Reply) -> object:
    """What the entry point of a module returns."""
    handler, reply["entry_point"] = _find_handler(module, request)
    return handler(request["input"], request["context"])


def execute(request: Request, name: str) -> types.ModuleType:
    """The code as a new module of this name."""
    filename, source = request["filename"], request["code"]
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = types.ModuleType(name)
    module.__file__ = filename
    sys.modules[name] = module
    code = compile(source, filename, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - running the user's code is the purpose, and this process is for it
    return module


def _find_handler(module: types.ModuleType, request: Request) -> tuple[Handler, str]:
    """The entry point of a module, and under which of the names it was found."""
    for name in request["entry_points"]:
        found: object = module.__dict__.get(name)
        if callable(found):
            return found, name
    wanted = " or ".join(f"`{name}`" for name in request["entry_points"])
    raise _RefusedError(f"the code defines no function {wanted}; define `def handler(input_data, context):`")


def _finish(value: object) -> object:
    """What an async handler returns."""
    import asyncio  # lazy: only async handlers need an event loop

    async def wait() -> object:
        return await value  # type: ignore[misc]  # the caller checked that it is awaitable

    return asyncio.run(wait())


def _encode(value: object) -> bytes:
    try:
        body = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        problem = report.not_json(value) or str(error)
    else:
        # Only a result with an escaped NUL or surrogate needs the slow look.
        suspicious = "\\u0000" in body or "\\ud" in body
        problem = (report.not_json(value) if suspicious else None) or ""
        if not problem:
            return body.encode()
    raise _RefusedError(f"the function returned something that is not JSON: {problem}")


def _say(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"SystemExit: the function called sys.exit({error.code!r}) instead of returning a result"
    return report.one_line(error)


def _trace(error: BaseException, filename: str) -> str | None:
    try:
        return report.user_traceback(error, filename)
    except Exception:  # noqa: BLE001 - the user's own classes take part in formatting
        return None

"""The program of a shared worker: runs trusted code in threads of one process, whose modules stay loaded.

One lock is held for each message and for stopping a thread: the exception that stops it
can then only reach it before it begins to write a message, never in the middle of one.
"""

import builtins
import ctypes
import itertools
import json
import os
import queue
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn, TypedDict

from . import frames, landlock, messages, report, runner, streams
from . import syscalls as sc

LOOK_SECONDS: Final = 0.01
"""How often a thread looks for the module that another is loading."""
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full")
MINIMUM_LANDLOCK: Final = 3


class Config(TypedDict):
    """The first message from the host."""

    sys_path: list[str]
    readable: list[str]
    """What may be read, where the kernel can restrict it."""
    scratch: str
    env: dict[str, str]
    platform: tuple[str, int, str, int]
    """The name and the port by which code calls the platform, and those by which it is reached."""


class Request(runner.Request):
    """What to run."""

    log_bytes: int


class Question(TypedDict):
    """What code asks the host: the value of a secret, the names there are, or a person's answer to a prompt."""

    number: int
    what: str  # secret, names, input
    value: str


class Answer(TypedDict, total=False):
    """To a question: a value, or an error; `stopped` comes from here."""

    number: int
    value: object
    error: str
    stopped: bool


class StoppedExecution(BaseException):
    """Raised in the thread of an execution that was canceled or has used up its time."""


@dataclass(eq=False)
class _Execution:
    """One request on its way."""

    id: int
    request: Request
    left: dict[int, int]
    """Bytes that may still be printed, by stream."""
    thread: threading.Thread | None = None
    loading: bool = True
    stopped: bool = False
    ended: bool = False
    waiting: "dict[int, queue.SimpleQueue[Answer]]" = field(default_factory=dict)


@dataclass(frozen=True)
class _Loaded:
    code: str
    module: types.ModuleType


class Secrets(Mapping[str, str]):
    """`context["secrets"]`: a name becomes its value when it is looked up, and is then known until the end."""

    def __init__(self, ask: Callable[[str, str], object]) -> None:
        self._ask = ask
        self._known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            value = self._ask("secret", name)
            if not isinstance(value, str):
                raise KeyError(name)
            self._known[name] = value
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._names()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        names = self._ask("names", "")
        return [str(name) for name in names] if isinstance(names, list) else []

    def __repr__(self) -> str:
        return "<secrets>"


class _Worker:
    """The whole process: reads messages in its main thread, and runs each request in one of its own."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._current: ContextVar[_Execution | None] = ContextVar("execution", default=None)
        self._executions: dict[int, _Execution] = {}
        self._modules: dict[str, _Loaded] = {}
        self._loading: dict[str, _Execution] = {}
        self._numbers = itertools.count(1)

    def serve(self) -> NoReturn:
        """Answer the host until it goes away. Raises `EOFError` and `OSError` then."""
        streams.install(self._route)
        builtins.input = self._input
        self._inherit()
        runner.warm()
        self._send(messages.READY, 0)
        while True:
            self._dispatch(*messages.unpack(frames.read(self._channel)))

    def _dispatch(self, sort: int, about: int, payload: bytes) -> None:
        if sort == messages.RUN:
            request: Request = json.loads(payload)
            most = request["log_bytes"]
            execution = _Execution(about, request, {messages.STDOUT: most, messages.STDERR: most})
            self._executions[about] = execution
            name = f"{request['filename']}-{about}"
            execution.thread = threading.Thread(target=self._run, args=(execution,), name=name, daemon=True)
            execution.thread.start()
        elif sort == messages.STOP and about in self._executions:
            self._stop(self._executions[about])
        elif sort == messages.ANSWER and about in self._executions:
            answer: Answer = json.loads(payload)
            waiting = self._executions[about].waiting.get(answer["number"])
            if waiting is not None:
                waiting.put(answer)

    def _send(self, sort: int, about: int, payload: bytes = b"") -> None:
        with self._sending:
            frames.write_all(self._channel, messages.pack(sort, about, payload))

    def _run(self, execution: _Execution) -> None:
        reply: bytes | None = None
        while not execution.ended:
            try:
                if reply is None:
                    reply = self._reply(execution)
                with self._sending:
                    execution.ended = True
            except StoppedExecution:  # on the way from the code to its end; it comes at most once
                reply = reply or _STOPPED
        try:
            self._send(messages.DONE, execution.id, reply or _STOPPED)
        except StoppedExecution:  # before anything was written
            self._send(messages.DONE, execution.id, reply or _STOPPED)
        del self._executions[execution.id]

    def _reply(self, execution: _Execution) -> bytes:
        self._current.set(execution)
        request = execution.request
        request["context"]["secrets"] = Secrets(partial(self._ask, execution))
        return runner.answer(request, lambda _, reply: runner.call_handler(self._load(execution), request, reply))

    def _load(self, execution: _Execution) -> types.ModuleType:
        """The module that is loaded, if it is of the same code."""
        request = execution.request
        filename = request["filename"]
        known = self._modules.get(filename)
        if known is None or known.code != request["code"]:
            known = self._load_anew(execution)
        execution.loading = False
        return known.module

    def _load_anew(self, execution: _Execution) -> _Loaded:
        """Execute the code, once for all who wait for it.

        No lock: the exception that stops a thread may come between taking one and the block that gives it back.
        """
        request = execution.request
        filename = request["filename"]
        try:
            while (owner := self._loading.setdefault(filename, execution)) is not execution:
                if owner.ended:
                    self._loading[filename] = execution
                time.sleep(LOOK_SECONDS)
            known = self._modules.get(filename)
            if known is None or known.code != request["code"]:
                module = runner.execute(request, f"{report.MODULE}:{filename.removesuffix('.py')}")
                known = self._modules[filename] = _Loaded(request["code"], module)
            return known
        finally:
            if self._loading.get(filename) is execution:
                del self._loading[filename]

    def _stop(self, execution: _Execution) -> None:
        with self._sending:
            if execution.ended or execution.stopped or execution.thread is None:
                return
            execution.stopped = True
            for waiting in list(execution.waiting.values()):
                waiting.put({"stopped": True})
            thread = ctypes.c_ulong(execution.thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(StoppedExecution))

    def _ask(self, execution: _Execution, what: str, value: str) -> object:
        """What the host answers; the thread waits for it."""
        number = next(self._numbers)
        waiting = execution.waiting[number] = queue.SimpleQueue()
        try:
            if execution.stopped or execution.ended:
                raise StoppedExecution
            question: Question = {"number": number, "what": what, "value": value}
            self._send(messages.ASK, execution.id, json.dumps(question).encode())
            answer = waiting.get()
        finally:
            del execution.waiting[number]
        if answer.get("stopped"):
            raise StoppedExecution
        if "error" in answer:
            raise TimeoutError(answer["error"]) if what == "input" else RuntimeError(answer["error"])
        return answer.get("value")

    def _input(self, prompt: object = "", /) -> str:
        execution = self._current.get()
        if execution is None or execution.loading:
            raise RuntimeError("input() can be called only while the handler runs")
        return str(self._ask(execution, "input", str(prompt)))

    def _route(self, sort: int) -> Callable[[bytes], None] | None:
        execution = self._current.get()
        return None if execution is None else partial(self._print, execution, sort)

    def _print(self, execution: _Execution, sort: int, data: bytes) -> None:
        """Pass on what was printed, as far as the limit and one byte more, so that the host sees that it was hit."""
        left = execution.left[sort]
        if left < 0 or execution.ended:
            return
        execution.left[sort] = left - len(data)
        self._send(sort, execution.id, data[: left + 1])

    def _inherit(self) -> None:
        """Threads that code starts work for the execution that started them."""
        start, current = threading.Thread.start, self._current

        def started(thread: threading.Thread) -> None:
            """`Thread.start`, with what the new thread works for."""
            execution, run = current.get(), thread.run

            def within() -> None:
                current.set(execution)
                run()

            if execution is not None:
                thread.run = within  # type: ignore[method-assign]  # of this thread only
            start(thread)

        threading.Thread.start = started  # type: ignore[method-assign, assignment]  # there is no other place to stand in between


_STOPPED: Final = json.dumps({"status": "error", "error": "StoppedExecution", "traceback": None}).encode()


def main(channel: int) -> NoReturn:
    """Become a shared worker; ends with the host."""
    os.umask(0o077)
    sc.die_with_parent()
    try:
        config: Config = json.loads(frames.read(channel))
    except EOFError:
        os._exit(0)
    os.environ.clear()
    os.environ.update(config["env"])
    os.chdir(config["scratch"])
    sys.path[:] = config["sys_path"]
    _reach_platform(*config["platform"])
    sc.drop_capabilities()
    abi = landlock.version()
    if abi >= MINIMUM_LANDLOCK:  # keys and databases of the platform are nobody's business, trusted or not
        landlock.restrict(abi, config["readable"], (config["scratch"], *DEVICES))
    try:
        _Worker(channel).serve()
    except (EOFError, OSError):  # the host went away
        os._exit(0)


def _reach_platform(name: str, port: int, real_name: str, real_port: int) -> None:
    """Make the platform's name and port lead to where it is reached from here."""
    resolve: Callable[..., object] = socket.getaddrinfo

    def resolved(host: object, service: object, *arguments: object, **named: object) -> object:
        if host in (name, name.encode()) and str(service) == str(port):
            host, service = real_name, real_port
        return resolve(host, service, *arguments, **named)

    socket.getaddrinfo = resolved  # type: ignore[assignment]  # asyncio and http.client call it as well

"""One task in a shared worker, seen from the host: its time limit, its output, what it asks, and its end."""

import asyncio
import json
from collections.abc import Callable, Coroutine

from sinas_server.backends.sandbox import HostRefusalError, OnOutput, Outcome, Task
from sinas_server.backends.sandbox.execution import Output, fields
from sinas_server.backends.sandbox.guest import messages
from sinas_server.backends.sandbox.guest.shared import Answer, Question
from sinas_server.backends.sandbox.outcome import Evidence, conclude

Stop = Callable[[], None]
GRACE_SECONDS = 0.5
"""How long a task whose time is up may take to end by itself, with all that it printed."""


class Clock:
    """A time limit that can stand still."""

    def __init__(self, seconds: float, on_end: Stop) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = seconds
        self._on_end = on_end
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._stopped = 0

    def start(self) -> None:
        """Let it run, if nobody else has stopped it."""
        self._stopped = max(0, self._stopped - 1)
        if not self._stopped and self._timer is None:
            self._since = self._loop.time()
            self._timer = self._loop.call_later(self._left, self._on_end)

    def stop(self) -> None:
        """Make it stand still until `start` was called as often."""
        self._stopped += 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._left = max(0.0, self._left - (self._loop.time() - self._since))


class SharedTask:
    """A task on its way."""

    def __init__(self, task: Task, on_output: OnOutput | None, send: Callable[[int, bytes], None]) -> None:
        self.task = task
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.asked_to_stop = False
        self._send = send
        self._timed_out = False
        limit = task.limits.log_bytes
        self._outputs = {
            messages.STDOUT: Output("stdout", limit, on_output),
            messages.STDERR: Output("stderr", limit, on_output),
        }
        self._clock = Clock(task.limits.wall_seconds, self._time_is_up)
        self._questions: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Send it to the worker."""
        request = fields(self.task) | {"log_bytes": self.task.limits.log_bytes}
        self._send(messages.RUN, json.dumps(request).encode())
        self._clock.start()

    def stop(self) -> None:
        """Have its thread end."""
        if not self.asked_to_stop:
            self.asked_to_stop = True
            self._leave_questions()
            self._send(messages.STOP, b"")

    def _time_is_up(self) -> None:
        self._timed_out = True
        self.stop()
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self.end)

    def receive(self, sort: int, payload: bytes) -> None:
        """Take a message of the worker. Raises `ValueError` for one that is none."""
        if sort in self._outputs:
            self._outputs[sort].feed(payload)
        elif sort == messages.ASK:
            self._begin(self._answer(json.loads(payload)))
        elif sort == messages.DONE:
            self.end(payload)
        else:
            raise ValueError(f"unknown message {sort}")

    def end(self, reply: bytes | None = None, error: Exception | None = None) -> None:
        """Settle the outcome: by the worker's reply, by an error, or with neither as timed out."""
        self._clock.stop()
        self._leave_questions()
        if self.outcome.done():
            return
        if error is not None:
            self.outcome.set_exception(error)
            return
        stdout, stderr = (self._outputs[sort].finish() for sort in (messages.STDOUT, messages.STDERR))
        seen = Evidence(reply=reply, timed_out=self._timed_out, stdout=stdout, stderr=stderr)
        self.outcome.set_result(conclude(self.task, seen))

    def _leave_questions(self) -> None:
        for question in self._questions:
            question.cancel()

    def _begin(self, answering: Coroutine[object, object, None]) -> None:
        question = asyncio.ensure_future(answering)
        self._questions.add(question)
        question.add_done_callback(self._answered)

    def _answered(self, question: "asyncio.Task[None]") -> None:
        self._questions.discard(question)
        error = None if question.cancelled() else question.exception()
        if isinstance(error, Exception):
            self.end(error=error)
            self.stop()

    async def _answer(self, question: Question) -> None:
        answer: Answer = {"number": question["number"]}
        try:
            answer["value"] = await self._ask(question["what"], question["value"])
        except HostRefusalError as error:
            answer["error"] = str(error)
        self._send(messages.ANSWER, json.dumps(answer).encode())

    async def _ask(self, what: str, value: str) -> object:
        host = self.task.host
        if host is None:
            return None
        if what == "secret":
            return await host.get_secret(value)
        if what == "names":
            return await host.list_secrets()
        self._clock.stop()
        try:
            return await host.get_input(value)
        finally:
            self._clock.start()

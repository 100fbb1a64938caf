"""Running scenarios against a server: several at once, each in a chat of its own that is deleted afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, cast

import httpx2
import orjson
from pydantic import JsonValue

from sinas_server.cli.agent_tests.expect import Called, Heard, is_called, sent_name, unmet
from sinas_server.cli.agent_tests.read import Found
from sinas_server.cli.agent_tests.recording import Exchange, RecordingError, dumps, load
from sinas_server.cli.agent_tests.scenario import Judge, Turn
from sinas_server.cli.remote import Server, reason_of

Mode = Literal["live", "record", "replay"]
KEEP_SECONDS = 7200
"""Chats that this command could not delete are gone after so long."""


class ServerError(Exception):
    """The server refuses or does not answer; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """How a scenario went. `problems`: what was not as expected, none if it passed."""

    found: Found
    mode: Mode
    seconds: float
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything was as expected."""
        return not self.problems


@dataclass
class _Waiting:
    """What a turn waits for: calls to approve and questions to answer, by call id."""

    approvals: dict[str, str] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)


async def run_all(
    server: Server, scenarios: Sequence[tuple[Found, Mode]], at_once: int, tell: Callable[[Outcome], None]
) -> list[Outcome]:
    """The outcomes in the order of the scenarios; each is told as soon as it is known."""
    room = asyncio.Semaphore(at_once)
    timeout = httpx2.Timeout(30, read=None)
    limits = httpx2.Limits(max_connections=2 * at_once)
    async with httpx2.AsyncClient(base_url=server.url, headers=server.headers, timeout=timeout, limits=limits) as http:

        async def one(found: Found, mode: Mode) -> Outcome:
            async with room:
                outcome = await _Run(http, found, mode).outcome()
            tell(outcome)
            return outcome

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*each)) for each in scenarios]
    return [task.result() for task in tasks]


class _Run:
    """One scenario."""

    def __init__(self, http: httpx2.AsyncClient, found: Found, mode: Mode) -> None:
        self._http, self._found, self._mode = http, found, mode
        self._chat = ""
        self._beginning: asyncio.Task[str] | None = None
        self._broken = False
        """Whether a turn ended otherwise than expected, so that what was recorded is of no use."""

    async def outcome(self) -> Outcome:
        """Run it, whatever happens delete its chat, and say how it went."""
        since, notes = monotonic(), list[str]()
        try:
            # Whoever cancels while it is being made has it deleted as well.
            self._beginning = asyncio.ensure_future(self._begin())
            self._chat = await asyncio.shield(self._beginning)
            problems = await self._turns()
            if self._mode == "record":
                notes.append(await self._keep())
        except (ServerError, RecordingError) as error:
            problems = [str(error)]
        finally:
            await self._delete()
        return Outcome(self._found, self._mode, monotonic() - since, tuple(problems), tuple(notes))

    async def _begin(self) -> str:
        scenario = self._found.scenario
        body: dict[str, JsonValue] = {
            "input": scenario.input,
            "title": f"Test: {scenario.name}",
            "mode": self._mode,
            "stubs": [stub.model_dump(mode="json") for stub in scenario.stubs],
            "expires_in": KEEP_SECONDS,
            "exchanges": load(self._found.recording) if self._mode == "replay" else [],
        }
        return str((await self._request("POST", f"/agents/{scenario.agent}/test-chats", body))["id"])

    async def _turns(self) -> list[str]:
        problems: list[str] = []
        for number, turn in enumerate(self._found.scenario.turns, 1):
            problems += [f"turn {number}: {problem}" for problem in await self._turn(turn)]
            if self._broken:
                break
        return problems

    async def _turn(self, turn: Turn) -> list[str]:
        try:
            async with asyncio.timeout(self._found.scenario.timeout):
                heard = await self._talk(turn)
                if turn.expect.max_tokens is not None:
                    heard.tokens = await self._tokens()
                problems = list(unmet(turn.expect, heard))
                judge = turn.expect.answer and turn.expect.answer.judge
                if judge and heard.status == "completed":
                    problems += await self._judged(judge)
        except TimeoutError:
            self._broken = True
            return [f"took longer than {self._found.scenario.timeout:g} seconds"]
        self._broken = heard.status != turn.expect.status
        return problems

    async def _talk(self, turn: Turn) -> Heard:
        heard, answers = Heard(), list(turn.answers)
        events = self._events("POST", f"/chats/{self._chat}/messages/stream", {"content": turn.user})
        while True:
            waiting = await _follow(events, heard)
            channel = await self._decide(turn, answers, waiting) if heard.status == "waiting" else None
            if channel is None:
                return heard
            events = self._events("GET", f"/chats/{self._chat}/stream/{channel}")

    async def _decide(self, turn: Turn, answers: list[str], waiting: _Waiting) -> str | None:
        """Settle what the turn waits for as the scenario says; the channel where it goes on, if it does."""
        decisions = {
            call: next((known.approve for known in turn.approvals if _is_about(known.tool, name)), None)
            for call, name in waiting.approvals.items()
        }
        if None in decisions.values() or len(answers) < len(waiting.questions) or not (decisions or waiting.questions):
            return None
        channel = ""
        for call, approved in decisions.items():
            told = await self._request("POST", f"/chats/{self._chat}/approve-tool/{call}", {"approved": approved})
            channel = str(told["channel_id"])
        for call in waiting.questions:
            body: dict[str, JsonValue] = {"answer": answers.pop(0)}
            told = await self._request("POST", f"/chats/{self._chat}/pending-input/{call}", body)
            channel = str(told["channel_id"])
        return channel

    async def _tokens(self) -> int:
        """What the last turn took."""
        turn = (await self._request("GET", f"/chats/{self._chat}"))["last_turn"]
        usage = turn.get("usage") if isinstance(turn, dict) else None
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        return total if isinstance(total, int) else 0

    async def _judged(self, judge: Judge) -> list[str]:
        body = judge.model_dump(mode="json", exclude_none=True)
        verdict = await self._request("POST", f"/chats/{self._chat}/judge", body)
        return [] if verdict["passed"] else [f"judge: {verdict['reason']}"]

    async def _keep(self) -> str:
        """Write the recording, unless a turn broke."""
        file = self._found.recording
        if self._broken:
            return f"{file} is as it was: a turn did not end as expected"
        exchanges = (await self._request("GET", f"/chats/{self._chat}/recording"))["exchanges"]
        text = dumps(self._found.scenario.name, cast(list[Exchange], exchanges))
        try:
            file.write_text(text)
        except OSError as error:
            raise RecordingError(f"{file} cannot be written: {error}") from error
        return f"recorded in {file}"

    async def _delete(self) -> None:
        if self._beginning is not None:
            try:
                await self._request("DELETE", f"/chats/{await self._beginning}")
            except ServerError:
                return  # it expires by itself

    async def _request(self, method: str, path: str, body: JsonValue = None) -> dict[str, JsonValue]:
        try:
            answer = await self._http.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise ServerError(f"{self._http.base_url} does not answer: {error}") from error
        if answer.is_error:
            raise ServerError(f"{method} {path}: {answer.status_code} {reason_of(answer.content)}")
        found = orjson.loads(answer.content) if answer.content else {}
        return found if isinstance(found, dict) else {}

    async def _events(
        self, method: str, path: str, body: JsonValue = None
    ) -> AsyncIterator[tuple[str, dict[str, JsonValue]]]:
        try:
            async with self._http.stream(method, path, json=body) as answer:
                if answer.is_error:
                    raise ServerError(f"{method} {path}: {answer.status_code} {reason_of(await answer.aread())}")
                name = ""
                async for line in answer.aiter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        yield name, orjson.loads(line.removeprefix("data: "))
        except httpx2.HTTPError as error:
            raise ServerError(f"{self._http.base_url} stopped answering: {error}") from error


def _is_about(tool: str, called: str) -> bool:
    """Whether a scenario's `tool` is what is called, as `namespace/name`."""
    return tool == called or is_called(called, tool)


async def _follow(events: AsyncIterator[tuple[str, dict[str, JsonValue]]], heard: Heard) -> _Waiting:
    """Take in the events of a channel."""
    waiting = _Waiting()
    heard.text = ""
    async for name, data in events:
        if name == "message":
            heard.text += str(data.get("content", ""))
        elif name == "restart":
            heard.text = ""
        elif name == "tool_start":
            heard.text = ""  # what was said beside calls is not the answer
            heard.calls[str(data["tool_call_id"])] = Called(str(data["name"]), _parsed(data["arguments"]))
        elif name == "approval_required":  # one that is refused never starts, but it was made
            called = f"{data['function_namespace']}/{data['function_name']}".lstrip("/")
            waiting.approvals[str(data["tool_call_id"])] = called
            heard.calls[str(data["tool_call_id"])] = Called(sent_name(called), data["arguments"])
        elif name == "input_required":
            waiting.questions.append(str(data["tool_call_id"]))
        elif name == "error":
            heard.status, heard.error = "failed", str(data.get("error", ""))
        elif name == "done":
            heard.status = "waiting" if data.get("status") == "suspended" else "completed"
    return waiting


def _parsed(arguments: JsonValue) -> JsonValue:
    if not isinstance(arguments, str):
        return arguments
    try:
        value: JsonValue = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    return value

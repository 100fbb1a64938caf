"""An agent with a scripted model and tools that count their calls, on the real servers."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from pydantic import JsonValue

from sinas_server.chats.jobs import CHAT_JOB
from sinas_server.chats.tables import TurnRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.job import Job, Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult
from tests.people import Person

Json = dict[str, Any]


class CountingTools:
    """A toolset whose tools say what they were given, and count how often each call was carried out."""

    name = "counting"

    def __init__(self) -> None:
        self.ran: list[CallIdentity] = []
        self.hold: asyncio.Event | None = None
        """Set: a call waits for it."""

    def let_go(self) -> None:
        """Let the calls that wait end."""
        assert self.hold is not None
        self.hold.set()

    async def get_tools(self, runtime: Runtime, caller: Caller, agent: AgentContext) -> list[Tool]:
        templates = cast(dict[str, str], agent.enabled["status_templates"])
        return [
            Tool(
                name=target.replace("/", "__"),
                description=f"Does {target}",
                parameters={"type": "object"},
                toolset=self.name,
                target=target,
                requires_approval="danger" in target,
                status=templates.get(target) or ("Looking at {{ n }}" if target.endswith("look") else None),
            )
            for target in cast(list[str], agent.enabled["enabled_functions"])
        ]

    async def call_tool(
        self, runtime: Runtime, caller: Caller, tool: Tool, arguments: Mapping[str, JsonValue], identity: CallIdentity
    ) -> ToolResult:
        self.ran.append(identity)
        if self.hold is not None:
            await self.hold.wait()
        if arguments.get("fail"):
            return ToolResult("Error: as asked", is_error=True)
        return ToolResult(json.dumps({"tool": tool.target, "got": dict(arguments)}))


@pytest.fixture
def tools() -> CountingTools:
    return CountingTools()


@pytest.fixture
def runtime(runtime: Runtime, tools: CountingTools) -> Runtime:
    return dataclasses.replace(runtime, toolsets=(tools,))


@asynccontextmanager
async def working(
    runtime: Runtime, job: Job[TurnRow] = CHAT_JOB, name: str = "agents-test", slots: int = 4
) -> AsyncIterator[None]:
    """An agent worker while the block runs."""
    worker = Worker(dataclasses.replace(runtime, worker_name=name), job, slots)
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def worker(runtime: Runtime) -> AsyncIterator[None]:
    async with working(runtime):
        yield


Declare = Callable[..., Awaitable[str]]


@pytest.fixture
def declare(admin: Person) -> Declare:
    """Creates an agent with a scripted model of its own: `await declare("name", rules=[...], **fields)`."""

    async def create(name: str, rules: list[Json] | None = None, **fields: JsonValue) -> str:
        config = {"rules": rules or [], "default": fields.pop("default", "Hello, I am the agent."), "chunk_size": 4}
        config["delay_ms"] = fields.pop("delay_ms", 0)
        provider = {"name": f"for-{name}", "provider_type": "scripted", "config": config}
        made = await admin.http.post("/api/v1/llm-providers", json=provider)
        assert made.status_code == 201, made.text
        body = {"name": name, "llm_provider_id": made.json()["id"], **fields}
        made = await admin.http.post("/api/v1/agents", json=body)
        assert made.status_code == 201, made.text
        return f"default/{name}"

    return create


async def open_chat(person: Person, agent: str, **body: JsonValue) -> str:
    """A new chat's id."""
    made = await person.http.post(f"/agents/{agent}/chats", json=body)
    assert made.status_code == 200, made.text
    return cast(str, made.json()["id"])


@dataclasses.dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str
    name: str
    data: Json


def parse(body: str) -> list[Event]:
    """The events of a finished stream."""
    events = []
    for block in body.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(fields) == {"id", "event", "data"}
        data = json.loads(fields["data"])
        assert data["type"] == fields["event"]
        events.append(Event(fields["id"], fields["event"], data))
    return events


async def stream(person: Person, chat_id: str, content: JsonValue, **more: JsonValue) -> list[Event]:
    """What the stream of a message says."""
    answer = await person.http.post(f"/chats/{chat_id}/messages/stream", json={"content": content, **more}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parse(answer.text)


async def reread(
    person: Person, chat_id: str, channel_id: str, headers: dict[str, str] | None = None, **params: str
) -> list[Event]:
    """The same, by reconnecting."""
    answer = await person.http.get(f"/chats/{chat_id}/stream/{channel_id}", timeout=60, headers=headers, params=params)
    assert answer.status_code == 200, answer.text
    return parse(answer.text)


def text_of(events: list[Event]) -> str:
    """The text of the last answer."""
    text = ""
    for event in events:
        if event.name in ("tool_start", "restart"):
            text = ""
        elif event.name == "message":
            text += event.data["content"]
    return text


def joined(events: list[Event]) -> list[tuple[str, str, str]]:
    """Events as phase, name and content; text that was sent in several pieces is one."""
    found: list[tuple[str, str, str]] = []
    for event in events:
        phase, name = event.id.partition("-")[0], event.name
        text = event.data["content"] if name == "message" else str(event.data)
        if found and name == "message" and found[-1][:2] == (phase, name):
            text = found.pop()[2] + text
        found.append((phase, name, text))
    return found


async def get_chat(person: Person, chat_id: str) -> Json:
    """A chat with its messages."""
    answer = await person.http.get(f"/chats/{chat_id}")
    assert answer.status_code == 200, answer.text
    return cast(Json, answer.json())

"""What an agent's model may call: a toolset lists its tools and carries out a call.

Every slice that offers tools has one in its `tools.py`; the catalog passes them all to the agent loop.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from pydantic import JsonValue

from sinas_server.kernel.access import Caller

if TYPE_CHECKING:
    from sinas_server.kernel.runtime import Runtime


MAX_NAME = 64
"""The longest tool name that providers take."""


def tool_name(*parts: str) -> str:
    """`namespace__name` in the alphabet of providers; one that is too long or not clear without a hash ends in one."""
    plain = "__".join(parts)
    safe = re.sub(r"[^a-zA-Z0-9_-]", "_", plain)
    if safe == plain and len(safe) <= MAX_NAME and plain.split("__") == list(parts):
        return safe
    mark = hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]
    return f"{safe[: MAX_NAME - 9]}_{mark}"


@dataclass(frozen=True)
class Tool:
    """One tool as the model sees it, and how to find it again."""

    name: str
    """The name sent to the model, like `orders__lookup`; unique within a turn."""
    description: str
    parameters: Mapping[str, JsonValue]
    """JSON Schema of the arguments."""
    toolset: str
    target: str
    """What the toolset needs to carry out a call: usually `namespace/name`."""
    requires_approval: bool = False
    locked: Mapping[str, JsonValue] = field(default_factory=dict)
    """Arguments that are always these, hidden from the model."""
    defaults: Mapping[str, JsonValue] = field(default_factory=dict)
    """Arguments used where the model gives none."""
    status: str | None = None
    """What to show while it runs: a Jinja2 template over the arguments."""
    fault: str | None = None
    """Why no call can be carried out, where the agent's declaration is to blame."""
    timeout: float | None = None
    """The longest a call may take, in seconds; what it calls may have a limit of its own."""


@dataclass(frozen=True)
class CallIdentity:
    """Which call this is; providers' ids are not unique (`spec/decisions.md` 24)."""

    chat_id: UUID
    turn_id: UUID
    step: int
    index: int
    tool_call_id: str | None
    """As clients know the call; none for a hook."""
    waited: bool = False
    """Whether it has been called before, and waited; what it waited for is settled now."""
    answer: str | None = None
    """What the user said, if it waited for that; None also if he said nothing in time."""


@dataclass(frozen=True)
class AgentContext:
    """Whose agent it is and what it was given; what a toolset needs to list its tools."""

    agent_id: UUID
    owner: Caller | None
    """The agent's owner with his rights of the moment, which the agent lends; None if he is gone."""
    enabled: Mapping[str, JsonValue]
    """The agent's `enabled_*` fields and parameters, by field name."""
    input: Mapping[str, JsonValue]


def system_tools(agent: AgentContext) -> list[str]:
    """The names in an agent's `system_tools`, which are texts or objects with a `name`."""
    named = agent.enabled.get("system_tools")
    items = named if isinstance(named, list) else []
    return [str(item["name"]) if isinstance(item, dict) else str(item) for item in items]


@dataclass(frozen=True)
class ToolResult:
    """What goes back to the model. An error is text the model can explain to the user."""

    content: str
    is_error: bool = False
    usage: Mapping[str, JsonValue] | None = None
    """What it used of models itself, as the usage of a turn; added to that of the turn that called."""


class Wait(StrEnum):
    """What a call waits for."""

    APPROVAL = "approval"
    """The user's decision; only the agent loop makes a call wait for it."""
    ANSWER = "answer"
    """The user's answer to a question of the call."""
    INPUT = "input"
    """The user's input to an execution that has paused."""
    AGENT = "agent"
    """The turn of another agent."""

    @property
    def is_for_people(self) -> bool:
        """Whether a person has to act."""
        return self is not Wait.AGENT


@dataclass(frozen=True)
class Waiting:
    """Instead of a result: the call waits, and is called again once what it waits for is settled.

    Its turn meanwhile holds no worker. Nothing of the process is kept: what the call needs later is in rows that its
    identity finds.
    """

    wait: Wait
    question: str | None = None
    """What the user is asked."""
    options: tuple[str, ...] | None = None
    """Answers to choose from."""


class Toolset(Protocol):
    """The tools of one slice."""

    name: str

    async def get_tools(self, runtime: "Runtime", caller: Caller, agent: AgentContext) -> list[Tool]:
        """The tools this agent may use on behalf of `caller`; what the caller may not use is left out."""
        ...

    async def call_tool(
        self,
        runtime: "Runtime",
        caller: Caller,
        tool: Tool,
        arguments: Mapping[str, JsonValue],
        identity: CallIdentity,
    ) -> ToolResult | Waiting:
        """Carry out a call; called again with the same identity after a crash, it must settle the first attempt."""
        ...

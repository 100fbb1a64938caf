"""Agents as tools of agents: each call is a chat of its own, whose turn runs in the queue like any other."""

from collections.abc import Iterable, Mapping
from typing import cast
from uuid import UUID

import orjson
from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import aliased

from sinas_server.agents.kind import AGENT, AgentSpec
from sinas_server.chats.chat import Wanted, create_chat
from sinas_server.chats.content import Kept
from sinas_server.chats.ending import abandon
from sinas_server.chats.nesting import AGENTS, ChildIds
from sinas_server.chats.record import locked_turn
from sinas_server.chats.start import ByCall, Said, start_new
from sinas_server.chats.tables import ChatRow, MessageRow, Status, TurnRow
from sinas_server.kernel import lookup
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import InvalidError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult, Wait, Waiting, tool_name
from sinas_server.kernel.unit import Db

MAX_DEPTH = 8
"""How many agents may call each other in a chain, the first included."""
MESSAGE: dict[str, JsonValue] = {"type": "string", "description": "What the agent is to do, with all it must know."}


class AgentTools:
    """`Toolset` of the agents that an agent enables."""

    name = AGENTS

    async def get_tools(self, runtime: Runtime, caller: Caller, agent: AgentContext) -> list[Tool]:
        """Those that are active and that the agent's owner may chat with."""
        wanted = cast(Iterable[str], agent.enabled.get("enabled_agents") or ())
        templates = cast(Mapping[str, str], agent.enabled.get("status_templates") or {})
        return [
            Tool(
                name=(name := tool_name(f"call_agent_{found.namespace}", found.name)),
                description=found.spec.description or f"The agent {found.ref}.",
                parameters=_parameters(found.spec),
                toolset=self.name,
                target=found.ref,
                status=templates.get(found.ref) or templates.get(name) or f"Asking {found.ref}",
            )
            for found in await lookup.lent(runtime.database, agent, AGENT, wanted, "chat")
        ]

    async def call_tool(
        self,
        runtime: Runtime,
        caller: Caller,
        tool: Tool,
        arguments: Mapping[str, JsonValue],
        identity: CallIdentity,
    ) -> ToolResult | Waiting:
        """The agent's answer, as JSON of `agent_name`, `response` and `chat_id`; waits for it."""
        async with runtime.database.unit() as db:
            child = await db.get(TurnRow, _ids(identity).turn)
            if child is None and not identity.waited:
                return await _begin(db, runtime, caller, tool, arguments, identity)
            if child is not None and child.finished_at is None and not identity.waited:
                return Waiting(Wait.AGENT)
            if child is None:
                return _told(tool, identity, "Error: the chat with this agent was deleted", failed=True)
            if child.finished_at is None:  # it was waited for as long as it may take
                await abandon(db, runtime, identity.turn_id, (identity.step, identity.index))
                return _told(tool, identity, "Error: the agent took too long and was stopped", failed=True)
            return await _answer(db, tool, child, identity)


def _ids(identity: CallIdentity) -> ChildIds:
    return ChildIds.of(identity.turn_id, identity.step, identity.index)


def _parameters(spec: AgentSpec) -> dict[str, JsonValue]:
    """A message, and the input that the agent's schema asks for."""
    properties: dict[str, JsonValue] = {"message": MESSAGE}
    required: list[JsonValue] = ["message"]
    if spec.input_schema:
        properties["input"] = {"type": "object", **spec.input_schema}
        if spec.input_schema.get("required"):
            required.append("input")
    return {"type": "object", "properties": properties, "required": required}


async def _begin(
    db: Db, runtime: Runtime, caller: Caller, tool: Tool, arguments: Mapping[str, JsonValue], identity: CallIdentity
) -> ToolResult | Waiting:
    """Give the agent its task, unless that cannot be; then the model is told why."""
    parent = await locked_turn(db, identity.turn_id)
    if parent is None or parent.status != Status.RUNNING:  # stopped just now: nobody will hear the answer
        return ToolResult("Error: the agent was stopped", is_error=True)
    if await db.get(TurnRow, _ids(identity).turn) is not None:  # begun just now by a worker that has lost the turn
        return Waiting(Wait.AGENT)
    message, given = arguments.get("message"), arguments.get("input")
    if not isinstance(message, str) or not message.strip():
        return ToolResult("Error: arguments.message: must be a text that says what to do", is_error=True)
    if given is not None and not isinstance(given, dict):
        return ToolResult("Error: arguments.input: must be an object", is_error=True)
    agent = await lookup.find(runtime.database, AGENT, *lookup.where(tool.target))
    if agent is None or not agent.is_active:
        return ToolResult(f"Error: the agent '{tool.target}' does not exist any more", is_error=True)
    refusal = _refusal(agent, await _chain(db, parent.id))
    if refusal is not None:
        return ToolResult(f"Error: {refusal}", is_error=True)
    above = await db.get_one(ChatRow, parent.chat_id)
    wanted = Wanted(
        input=given or {},
        title=message.strip()[:100],
        id=_ids(identity).chat,
        parent_chat_id=above.id,
        test_id=above.test_id,
        always_allowed=tuple(above.always_allowed),
    )
    try:
        chat = await create_chat(db, caller, agent, wanted)
    except InvalidError as error:
        return ToolResult(f"Error: {error.detail}".replace("body.input", "arguments.input"), is_error=True)
    await start_new(db, runtime, caller, agent, [(chat, Said(Kept(message), by=ByCall(parent, identity)))])
    return Waiting(Wait.AGENT)


async def _chain(db: Db, turn_id: UUID) -> list[tuple[UUID, str]]:
    """The agents at work, from the first to that of this turn: id and `namespace/name`."""
    upwards = select(TurnRow.parent_turn_id, TurnRow.chat_id).where(TurnRow.id == turn_id).cte("chain", recursive=True)
    above = aliased(TurnRow)
    upwards = upwards.union_all(
        select(above.parent_turn_id, above.chat_id).join(upwards, above.id == upwards.c.parent_turn_id)
    )
    query = select(ChatRow).join(upwards, ChatRow.id == upwards.c.chat_id).order_by(ChatRow.created_at)
    return [(chat.agent_id, f"{chat.agent_namespace}/{chat.agent_name}") for chat in await db.scalars(query)]


def _refusal(agent: Resource[AgentSpec], chain: list[tuple[UUID, str]]) -> str | None:
    """Why the agent cannot be called at the end of this chain."""
    names = " → ".join([*(name for _, name in chain), agent.ref])
    if any(agent.id == known for known, _ in chain):
        return f"the agents would call each other in a circle: {names}. Answer with what is known"
    if len(chain) >= MAX_DEPTH:
        return f"agents may call each other {MAX_DEPTH} deep: {names}. Answer with what is known"
    return None


async def _answer(db: Db, tool: Tool, child: TurnRow, identity: CallIdentity) -> ToolResult:
    """What the model is told about a child's turn that has ended."""
    said = await db.scalar(
        select(MessageRow.content)
        .where(MessageRow.turn_id == child.id, MessageRow.role == "assistant")
        .order_by(MessageRow.seq.desc())
        .limit(1)
    )
    if child.status == Status.COMPLETED:
        return _told(tool, identity, said or "", usage=child.usage)
    why = child.error if child.status == Status.FAILED else "the agent was stopped"
    return _told(tool, identity, f"Error: {why}", usage=child.usage, failed=True)


def _told(
    tool: Tool,
    identity: CallIdentity,
    response: str,
    *,
    usage: Mapping[str, JsonValue] | None = None,
    failed: bool = False,
) -> ToolResult:
    told = {"agent_name": tool.target, "response": response, "chat_id": str(_ids(identity).chat)}
    return ToolResult(orjson.dumps(told).decode(), is_error=failed, usage=usage or None)

"""What a turn works with, looked up anew at each attempt: today's rights, agent, provider and tools."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import cast
from uuid import UUID

from pydantic import JsonValue

from sinas_server.agents.kind import AGENT, AgentSpec
from sinas_server.chats.hooks import MessageHooks, hooks_of
from sinas_server.chats.policy import governed
from sinas_server.chats.prompt import Prompt, agent_context, opening
from sinas_server.chats.results import READ_RESULT
from sinas_server.chats.tables import ChatRow, TurnRow
from sinas_server.chats.talk import Talk, allowed_agent, read_talk
from sinas_server.chats.testing import ChatTest, test_of
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel import lookup, store
from sinas_server.kernel.access import Caller, Via
from sinas_server.kernel.errors import ForbiddenError, NotFoundError, UnauthorizedError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import AgentContext, Tool
from sinas_server.kernel.unit import Db
from sinas_server.providers.resolve import Resolved, resolve_now
from sinas_server.providers.usage import Payer
from sinas_server.skills.tools import preloaded

FRESH_SECONDS = 1.0


@dataclass(frozen=True)
class Prepared:
    """Everything a turn needs beside its journal."""

    caller: Caller
    provider: Resolved
    payer: Payer
    prompt: Prompt
    hooks: MessageHooks
    always_allowed: frozenset[str]
    """The tools (`toolset:target`) that need no approval any more in this chat."""
    counted: Mapping[str, JsonValue]
    """How models count its tokens, see `window.counted`."""
    test: ChatTest | None = None
    """The test that the chat is part of."""
    at: float = field(default_factory=monotonic)
    """When that was, in seconds of the monotonic clock."""

    @property
    def is_old(self) -> bool:
        """Whether rights may have been withdrawn since for so long that one looks again before a call."""
        return monotonic() - self.at > FRESH_SECONDS

    def offers(self, tool: Mapping[str, JsonValue]) -> bool:
        """Whether a journaled tool is one of the agent's now."""
        wanted = (tool.get("toolset"), tool.get("target"))
        return any((known.toolset, known.target) == wanted for known in self.prompt.tools.values())

    def reading(self) -> "Prepared":
        """The same where there is a large result to read on in."""
        tools = {**self.prompt.tools, READ_RESULT.name: READ_RESULT}
        return replace(self, prompt=replace(self.prompt, tools=tools))


async def usable_agent(db: Db, caller: Caller, chat: ChatRow) -> Resource[AgentSpec]:
    """The chat's agent if the caller may still chat with it. Raises 404 or 403."""
    return allowed_agent(caller, chat, await store.fetch(db, AGENT, chat.agent_id))


async def acting(runtime: Runtime, turn: TurnRow) -> Caller:
    """Whom the turn acts for. Raises `ForbiddenError` for somebody who has no rights left."""
    principal = Principal(turn.user_id, turn.api_key_id, tuple(turn.owner_ids), turn.depth)
    try:
        return await act_for(runtime, principal, cast(Via, turn.via))
    except UnauthorizedError as error:
        raise ForbiddenError("The user or API key this turn works for is not valid any more") from error


async def prepare(runtime: Runtime, turn: TurnRow) -> Prepared:
    """Look everything up. Raises `SinasError` and `PromptError` with what is missing."""
    caller, talk = await asyncio.gather(acting(runtime, turn), read_talk(runtime.database, turn.chat_id))
    if talk is None:
        raise NotFoundError("the chat was deleted")
    agent = await _agent(runtime, caller, turn, talk)
    resolving = resolve_now(runtime.database, agent.spec.llm_provider_id, agent.spec.model)
    found, owner = await asyncio.gather(resolving, lender(runtime, agent.owner_id))
    values = with_defaults(agent.spec.input_schema, talk.chat.input)
    context = agent_context(agent, owner, values)
    tools = await _tools(runtime, caller, agent.spec, context)
    if talk.paged:
        tools[READ_RESULT.name] = READ_RESULT
    messages = await opening(runtime, agent.spec, values, await preloaded(runtime, context))
    prompt = Prompt(agent.spec, messages, tools, str(turn.chat_id))
    hooks = await hooks_of(runtime, caller, turn, agent, (context, talk.chat.session_key))
    payer, allowed = payer_of(turn, agent), frozenset(talk.chat.always_allowed)
    test = await test_of(runtime, caller, talk.chat, agent)
    return Prepared(caller, found, payer, prompt, hooks, allowed, talk.chat.counted, test)


def payer_of(turn: TurnRow, agent: Resource[AgentSpec]) -> Payer:
    """On whose account the turn asks the model."""
    return Payer(turn.user_id, turn.api_key_id, agent.id, agent.ref)


async def _agent(runtime: Runtime, caller: Caller, turn: TurnRow, talk: Talk) -> Resource[AgentSpec]:
    """The chat's agent, if the turn may have it work now. Raises 404 or 403.

    One that was called by another agent needs that this one still lends it: what the user may do with it directly
    does not count.
    """
    if turn.parent_turn_id is None or talk.agent is None or talk.chat.parent_chat_id is None:
        return allowed_agent(caller, talk.chat, talk.agent)
    above = await read_talk(runtime.database, talk.chat.parent_chat_id)
    if above is not None and above.agent is not None:
        context = agent_context(above.agent, await lender(runtime, above.agent.owner_id), {})
        lent = await lookup.lent(runtime.database, context, AGENT, above.agent.spec.enabled_agents, "chat")
        if any(agent.id == talk.agent.id for agent in lent):
            return talk.agent
    raise ForbiddenError(f"Not authorized: the agent that called '{talk.agent.ref}' may not call it any more")


def with_defaults(schema: Mapping[str, JsonValue], given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The chat's input, completed by the defaults its schema gives."""
    properties = schema.get("properties")
    declared = properties.items() if isinstance(properties, dict) else ()
    defaults = {name: rule["default"] for name, rule in declared if isinstance(rule, dict) and "default" in rule}
    return {**defaults, **given}


async def lender(runtime: Runtime, owner_id: UUID | None) -> Caller | None:
    """An agent's owner with his rights of the moment; None if he is gone or deactivated."""
    if owner_id is None:
        return None
    try:
        return await act_for(runtime, Principal(owner_id), "system")
    except UnauthorizedError:
        return None


async def _tools(runtime: Runtime, caller: Caller, agent: AgentSpec, context: AgentContext) -> dict[str, Tool]:
    tools: dict[str, Tool] = {}
    for toolset in runtime.toolsets:
        for tool in await toolset.get_tools(runtime, caller, context):
            usable = governed(agent, tool)
            if usable is not None:
                tools.setdefault(tool.name, usable)
    return tools

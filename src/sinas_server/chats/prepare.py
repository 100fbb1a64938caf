"""What a turn works with, looked up anew at each attempt: today's rights, agent, provider and tools."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from pydantic import JsonValue

from sinas_server.agents.kind import AGENT, AgentSpec
from sinas_server.backends.llm import ProviderConfig
from sinas_server.chats.prompt import Prompt, agent_context, opening
from sinas_server.chats.tables import ChatRow, TurnRow
from sinas_server.chats.talk import allowed_agent, read_talk
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller, Via
from sinas_server.kernel.errors import ForbiddenError, NotFoundError, UnauthorizedError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import AgentContext, Tool
from sinas_server.kernel.unit import Db
from sinas_server.providers.resolve import resolve_now
from sinas_server.skills.tools import preloaded


@dataclass(frozen=True)
class Prepared:
    """Everything a turn needs beside its journal."""

    caller: Caller
    config: ProviderConfig
    prompt: Prompt
    always_allowed: frozenset[str]
    """The tools (`toolset:target`) that need no approval any more in this chat."""


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
    agent = allowed_agent(caller, talk.chat, talk.agent)
    found = await resolve_now(runtime.database, agent.spec.llm_provider_id, agent.spec.model)
    values = with_defaults(agent.spec.input_schema, talk.chat.input)
    context = agent_context(agent, await lender(runtime, agent.owner_id), values)
    tools = await _tools(runtime, caller, context)
    messages = opening(agent.spec, values, await preloaded(runtime, context))
    prompt = Prompt(agent.spec, found.model, messages, tools)
    return Prepared(caller, found.config, prompt, frozenset(talk.chat.always_allowed))


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


async def _tools(runtime: Runtime, caller: Caller, context: AgentContext) -> dict[str, Tool]:
    tools: dict[str, Tool] = {}
    for toolset in runtime.toolsets:
        for tool in await toolset.get_tools(runtime, caller, context):
            tools.setdefault(tool.name, tool)
    return tools

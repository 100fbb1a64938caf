"""Skills for agents: preloaded into the system prompt, or read by the model when it needs them."""

from collections.abc import Iterable, Mapping
from typing import cast

from pydantic import JsonValue

from sinas_server.kernel import lookup
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult, tool_name
from sinas_server.skills.kind import SKILL


class SkillTools:
    """`Toolset` of the skills that an agent enables without `preload`: each is a tool that gives its content."""

    name = "skills"

    async def get_tools(self, runtime: Runtime, caller: Caller, agent: AgentContext) -> list[Tool]:
        """Those that are active and that the agent's owner may read."""
        templates = cast(Mapping[str, str], agent.enabled.get("status_templates") or {})
        return [
            Tool(
                name=(name := tool_name("skill", skill.namespace, skill.name)),
                description=skill.spec.description,
                parameters={"type": "object", "properties": {}},
                toolset=self.name,
                target=skill.ref,
                status=templates.get(skill.ref) or templates.get(name) or f"Reading {skill.ref}",
            )
            for skill in await lookup.lent(runtime.database, agent, SKILL, _wanted(agent, preload=False), "read")
        ]

    async def call_tool(
        self,
        runtime: Runtime,
        caller: Caller,
        tool: Tool,
        arguments: Mapping[str, JsonValue],
        identity: CallIdentity,
    ) -> ToolResult:
        """The skill's content as it is now."""
        skill = await lookup.find(runtime.database, SKILL, *lookup.where(tool.target))
        if skill is None or not skill.is_active:
            return ToolResult(f"Error: the skill '{tool.target}' does not exist any more", is_error=True)
        return ToolResult(skill.spec.content)


async def preloaded(runtime: Runtime, agent: AgentContext) -> list[str]:
    """The skills that belong into the system prompt, in the order in which the agent names them."""
    found = await lookup.lent(runtime.database, agent, SKILL, _wanted(agent, preload=True), "read")
    return [f"# Skill: {skill.ref}\n\n{skill.spec.content}" for skill in found]


def _wanted(agent: AgentContext, *, preload: bool) -> list[str]:
    """The names of those enabled with or without `preload`; one that is enabled in both ways is preloaded only."""
    enabled = cast(Iterable[Mapping[str, object]], agent.enabled.get("enabled_skills") or ())
    asked: dict[str, bool] = {}
    for item in enabled:
        name = str(item["skill"])
        asked[name] = asked.get(name, False) or bool(item.get("preload"))
    return [name for name, always in asked.items() if always == preload]

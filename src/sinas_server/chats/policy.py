"""What an agent's declaration says about its tools by patterns of their names: approvals and time limits."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

from sinas_server.agents.kind import AgentSpec
from sinas_server.kernel.tool import Tool

V = TypeVar("V")


def _rule(rules: Mapping[str, V], tool: Tool) -> V | None:
    """The first rule whose pattern fits the name that the model sees, or what is called (`namespace/name`)."""
    fitting = (
        rule for pattern, rule in rules.items() if fnmatchcase(tool.name, pattern) or fnmatchcase(tool.target, pattern)
    )
    return next(fitting, None)


def governed(agent: AgentSpec, tool: Tool) -> Tool | None:
    """The tool as the agent may use it; None for one it may not use.

    A function that asks for approval itself is not freed from it by `allow`: its owner knows why.
    """
    rule = _rule(agent.approval_policy, tool)
    if rule == "deny":
        return None
    return replace(
        tool,
        requires_approval=tool.requires_approval or rule == "ask",
        timeout=_rule(agent.tool_timeouts, tool),
    )

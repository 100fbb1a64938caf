"""Functions as the tools of agents."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import cast

import orjson
import structlog
from pydantic import JsonValue

from sinas_server.functions.call import call_as_tool
from sinas_server.functions.execute import Standing
from sinas_server.functions.kind import FUNCTION, FunctionSpec
from sinas_server.functions.tables import Status
from sinas_server.kernel import lookup
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import BadRequestError, InvalidError, NotFoundError
from sinas_server.kernel.fill import fixed_values
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Resource
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult, Wait, Waiting, tool_name
from sinas_server.kit.jinja import TemplateRenderError
from sinas_server.kit.parameters import Fixed, shown_schema

log = structlog.get_logger()


class FunctionTools:
    """`Toolset` of the functions that an agent enables."""

    name = "functions"

    async def get_tools(self, runtime: Runtime, caller: Caller, agent: AgentContext) -> list[Tool]:
        """The agent's functions that are active and that its owner may execute now.

        Whose data they work on stays the caller's affair: a function's token carries the caller's rights.
        """
        wanted = cast(Iterable[str], agent.enabled.get("enabled_functions") or ())
        usable = await lookup.lent(runtime.database, agent, FUNCTION, wanted, "execute")
        return list(await asyncio.gather(*(_tool(runtime, function, agent) for function in usable)))

    async def call_tool(
        self,
        runtime: Runtime,
        caller: Caller,
        tool: Tool,
        arguments: Mapping[str, JsonValue],
        identity: CallIdentity,
    ) -> ToolResult | Waiting:
        """The function's result, or that it waits for input. Called again, it waits for the execution there is."""
        given = {**tool.defaults, **arguments, **tool.locked}
        try:
            now = await call_as_tool(runtime, caller, lookup.where(tool.target), given, identity)
        except (NotFoundError, InvalidError, BadRequestError) as error:
            return ToolResult(f"Error: {error.detail}", is_error=True)
        return Waiting(Wait.INPUT, now.prompt) if now.status == Status.AWAITING_INPUT else _told(now)


async def _tool(runtime: Runtime, function: Resource[FunctionSpec], agent: AgentContext) -> Tool:
    """The function as a tool; if a value that the agent gives it cannot be made, calls of it say so."""
    spec = function.spec
    parameters = cast(Mapping[str, Mapping[str, JsonValue]], agent.enabled.get("function_parameters") or {})
    templates = cast(Mapping[str, str], agent.enabled.get("status_templates") or {})
    name = tool_name(function.namespace, function.name)
    declared = parameters.get(function.ref) or (
        parameters.get(function.name, {}) if function.namespace == "default" else {}
    )
    given, fault = Fixed(), None
    try:
        given = await fixed_values(runtime, declared, spec.input_schema, agent.input)
    except TemplateRenderError as error:
        fault = f"a value in the agent's function_parameters cannot be made: {error}"
    return Tool(
        name=name,
        description=spec.description or f"Function {function.ref}",
        parameters=shown_schema(spec.input_schema, given),
        toolset=FunctionTools.name,
        target=function.ref,
        requires_approval=spec.requires_approval,
        locked=given.locked,
        defaults=given.defaults,
        status=templates.get(function.ref) or templates.get(name),
        fault=fault,
    )


def _told(end: Standing) -> ToolResult:
    """What the model is told about an execution that has ended."""
    if end.status != Status.COMPLETED:
        return ToolResult(f"Error: {end.error or end.status}".replace("\x00", ""), is_error=True)
    result = end.output_data
    return ToolResult((result if isinstance(result, str) else orjson.dumps(result).decode()).replace("\x00", ""))

"""Tools of the platform itself, which an agent enables by name in `system_tools`."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import orjson
from pydantic import JsonValue

from sinas_server.functions.code import Code, run_code
from sinas_server.functions.tables import Status
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.routes import view
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Filter
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult, Wait, Waiting, system_tools

Arguments = Mapping[str, JsonValue]
Call = Callable[[Runtime, Caller, Arguments, CallIdentity], Awaitable[ToolResult | Waiting]]
LISTED = ("namespace", "name", "description", "is_active")
"""What a list shows of each resource."""


@dataclass(frozen=True)
class SystemTool:
    """What the model is told of a tool, and how it is carried out."""

    description: str
    parameters: Mapping[str, JsonValue]
    status: str
    call: Call


class SystemTools:
    """`Toolset` of the tools that an agent names in `system_tools`; names that are not known are left out."""

    name = "system"

    async def get_tools(self, runtime: Runtime, caller: Caller, agent: AgentContext) -> list[Tool]:
        """Those the agent names; what they show or do, they do with the rights of the caller."""
        return [
            Tool(
                name=name,
                description=SYSTEM_TOOLS[name].description,
                parameters=SYSTEM_TOOLS[name].parameters,
                toolset=self.name,
                target=name,
                status=SYSTEM_TOOLS[name].status,
            )
            for name in dict.fromkeys(system_tools(agent))
            if name in SYSTEM_TOOLS
        ]

    async def call_tool(
        self, runtime: Runtime, caller: Caller, tool: Tool, arguments: Arguments, identity: CallIdentity
    ) -> ToolResult | Waiting:
        """Whatever the tool does."""
        return await SYSTEM_TOOLS[tool.target].call(runtime, caller, arguments, identity)


async def _ask_user(
    runtime: Runtime, caller: Caller, arguments: Arguments, identity: CallIdentity
) -> ToolResult | Waiting:
    """Ask the user something, and wait."""
    if identity.waited:
        if identity.answer is None:
            return ToolResult("The user did not answer in time.", is_error=True)
        return ToolResult(identity.answer)
    question, options = arguments.get("question"), arguments.get("options")
    if not isinstance(question, str) or not question.strip():
        return ToolResult("Error: arguments.question: must be a text", is_error=True)
    if options is not None and not (isinstance(options, list) and all(isinstance(item, str) for item in options)):
        return ToolResult("Error: arguments.options: must be a list of texts", is_error=True)
    return Waiting(Wait.ANSWER, question, tuple(map(str, options)) if options else None)


async def _run_code(runtime: Runtime, caller: Caller, arguments: Arguments, identity: CallIdentity) -> ToolResult:
    """Run Python in a sandbox that can do nothing on behalf of the user."""
    source, variables = arguments.get("code"), arguments.get("variables")
    if not isinstance(source, str) or not source.strip():
        return ToolResult("Error: arguments.code: must be Python source", is_error=True)
    if variables is not None and not isinstance(variables, dict):
        return ToolResult("Error: arguments.variables: must be an object", is_error=True)
    row = await run_code(runtime, caller, Code(source=source, variables=variables or {}), identity)
    if row.status == Status.COMPLETED:
        return _shown({"result": row.output_data, "stdout": row.stdout})
    told = {"error": row.error or row.status, "traceback": row.traceback, "stdout": row.stdout}
    return ToolResult(orjson.dumps(told).decode(), is_error=True)


async def _introspect(runtime: Runtime, caller: Caller, arguments: Arguments, identity: CallIdentity) -> ToolResult:
    """What the caller may see of what is declared."""
    kinds = {kind.plural: kind for kind in runtime.kinds.values()}
    asked = arguments.get("resource")
    if asked is None:
        return _shown([{"resource": name, "description": kind.description} for name, kind in kinds.items()])
    kind = kinds.get(str(asked))
    if kind is None:
        return ToolResult(f"Error: arguments.resource: must be one of {', '.join(kinds)}", is_error=True)
    namespace, name = arguments.get("namespace"), arguments.get("name")
    async with runtime.database.unit() as db:
        if name is not None:
            where = str(namespace or "default") if kind.namespaced else ""
            return _shown(view(kind, await store.read(db, caller, kind, where, str(name))))
        only = Filter(namespace=str(namespace) if namespace and kind.namespaced else None)
        found = [view(kind, resource) for resource in await store.find(db, caller, kind, only)]
    return _shown([{key: one[key] for key in LISTED if key in one} for one in found])


def _shown(value: object) -> ToolResult:
    return ToolResult(orjson.dumps(value).decode())


def _text(description: str) -> dict[str, JsonValue]:
    return {"type": "string", "description": description}


SYSTEM_TOOLS: Mapping[str, SystemTool] = {
    "askUser": SystemTool(
        description="Ask the user a question and wait for the answer. Only for what cannot be found out otherwise.",
        parameters={
            "type": "object",
            "properties": {
                "question": _text("The question."),
                "options": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Answers to choose from, if there are few; the user may answer something else.",
                },
            },
            "required": ["question"],
        },
        status="Asking: {{ question }}",
        call=_ask_user,
    ),
    "codeExecution": SystemTool(
        description="Run Python in a sandbox. The result is the value of the last expression, or else of the variable "
        "`result`; what is printed comes back too. Nothing is kept from one run to the next.",
        parameters={
            "type": "object",
            "properties": {
                "code": _text("The Python source."),
                "variables": {"type": "object", "description": "Global variables of the code, by name."},
            },
            "required": ["code"],
        },
        status="Running code",
        call=_run_code,
    ),
    "configIntrospection": SystemTool(
        description="Show what is configured in this Sinas, as far as the user may see it: without arguments the "
        "sorts of resources, with `resource` a list of them, with `name` one of them whole.",
        parameters={
            "type": "object",
            "properties": {
                "resource": _text("A sort of resources, like `agents` or `functions`."),
                "namespace": _text("Only those of this namespace; for one resource, its namespace (else `default`)."),
                "name": _text("The one to show whole."),
            },
        },
        status="Looking at the configuration",
        call=_introspect,
    ),
}
"""Name in `system_tools` → the tool."""

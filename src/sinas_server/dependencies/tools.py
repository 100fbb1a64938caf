"""`packageManagement`: what an agent may do about the Python packages of functions, with its user's rights."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import orjson
from pydantic import JsonValue

from sinas_server.dependencies.approve import approve_package, withdraw_package
from sinas_server.dependencies.kind import DEPENDENCY
from sinas_server.dependencies.requirement import locked_versions, name_of
from sinas_server.dependencies.standing import Standing
from sinas_server.kernel import store
from sinas_server.kernel.access import Caller
from sinas_server.kernel.errors import AlreadyExistsError, NotFoundError
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult, system_tools

ENABLED_BY = "packageManagement"
"""What an agent names in `system_tools`."""
_PACKAGE: dict[str, JsonValue] = {"type": "string", "description": "The package as its index has it, with extras."}
_VERSION: dict[str, JsonValue] = {"type": "string", "description": "`2.1.0`, or a range like `>=2,<3`; else any."}


@dataclass(frozen=True)
class _Offer:
    """One of the tools."""

    action: str
    """The right that the user needs."""
    description: str
    properties: Mapping[str, JsonValue]
    status: str


OFFERS: Mapping[str, _Offer] = {
    "list": _Offer(
        "read",
        "List the Python packages that functions may import, with their versions and how far each is: `ready` when "
        "functions can import it, or why not.",
        {},
        "Looking at the packages",
    ),
    "approve": _Offer(
        "create",
        "Let functions import a Python package of the package index. It takes a while until it is `ready`.",
        {"package_name": _PACKAGE, "version": _VERSION},
        "Approving {{ package_name }}",
    ),
    "withdraw": _Offer(
        "delete",
        "No longer let functions import a Python package.",
        {"package_name": _PACKAGE},
        "Withdrawing {{ package_name }}",
    ),
}


class PackageTools:
    """`Toolset` of `packageManagement`. What changes something needs the user's approval: packages are foreign code."""

    name = "packages"

    async def get_tools(self, runtime: Runtime, caller: Caller, agent: AgentContext) -> list[Tool]:
        """Those for which the caller has the right, if the agent enables them."""
        if ENABLED_BY not in system_tools(agent):
            return []
        return [
            Tool(
                name=f"{ENABLED_BY}_{target}",
                description=offer.description,
                parameters={
                    "type": "object",
                    "properties": dict(offer.properties),
                    "required": ["package_name"] if offer.properties else [],
                },
                toolset=self.name,
                target=target,
                requires_approval=offer.action != "read",
                status=offer.status,
            )
            for target, offer in OFFERS.items()
            if caller.allows(DEPENDENCY.plural, offer.action, caller.id)
        ]

    async def call_tool(
        self,
        runtime: Runtime,
        caller: Caller,
        tool: Tool,
        arguments: Mapping[str, JsonValue],
        identity: CallIdentity,
    ) -> ToolResult:
        """Carried out again after a crash, a change finds itself done. Raises 403 and 422."""
        caller.require(DEPENDENCY.plural, OFFERS[tool.target].action, caller.id)
        if tool.target == "approve":
            return await _approve(runtime, caller, arguments)
        if tool.target == "withdraw":
            return await _withdraw(runtime, caller, arguments)
        return await _list(runtime, caller)


async def _list(runtime: Runtime, caller: Caller) -> ToolResult:
    standing = await Standing.now(runtime)
    installed = locked_versions(standing.ready.lock) if standing.ready is not None else {}
    shown: list[dict[str, object]] = []
    async with runtime.database.unit() as db:
        for found in await store.find(db, caller, DEPENDENCY):
            status, message = standing.of(found.spec.requirement)
            shown.append(
                {
                    "package_name": found.spec.package_name,
                    "version": found.spec.version,
                    "status": status,
                    "message": message,
                    "installed_version": installed.get(found.name),
                }
            )
    return _told(shown)


async def _approve(runtime: Runtime, caller: Caller, arguments: Mapping[str, JsonValue]) -> ToolResult:
    values = {"package_name": arguments.get("package_name"), "version": arguments.get("version")}
    wished = store.validated(DEPENDENCY, values)
    try:
        async with runtime.database.unit() as db:
            await approve_package(db, runtime, caller, values)
    except AlreadyExistsError:
        async with runtime.database.unit() as db:
            known = (await store.read(db, caller, DEPENDENCY, "", name_of(values))).spec
        if known != wished:
            return ToolResult(f"Error: it is approved as {known.requirement}: withdraw that first", is_error=True)
    return _told({"package_name": wished.package_name, "version": wished.version, "approved": True})


async def _withdraw(runtime: Runtime, caller: Caller, arguments: Mapping[str, JsonValue]) -> ToolResult:
    name = name_of(arguments)
    with suppress(NotFoundError):  # also of an earlier attempt of this call
        async with runtime.database.unit() as db:
            await withdraw_package(db, runtime, caller, name)
    return _told({"package_name": name, "approved": False})


def _told(value: object) -> ToolResult:
    return ToolResult(orjson.dumps(value).decode())

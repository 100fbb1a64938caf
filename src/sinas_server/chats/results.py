"""Large results: kept whole, told page by page, so that nothing is cut and nothing floods the conversation."""

from collections.abc import Mapping

from pydantic import JsonValue
from sqlalchemy import select

from sinas_server.chats.tables import ToolCallRow
from sinas_server.kernel.access import Caller
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tool import AgentContext, CallIdentity, Tool, ToolResult

READ_RESULT = Tool(
    name="read_tool_result",
    description="Read a page of a tool's result that was too large to be shown whole.",
    parameters={
        "type": "object",
        "properties": {
            "tool_call_id": {"type": "string", "description": "The call, as its first page names it."},
            "page": {"type": "integer", "minimum": 1, "description": "The page, counted from 1."},
        },
        "required": ["tool_call_id", "page"],
    },
    toolset="results",
    target="read_tool_result",
    status="Reading page {{ page }} of a result",
)


def page_of(text: str, number: int, size: int, call_id: str) -> str:
    """A page (from 1) of `size` characters of a result, and how to go on."""
    count = -(-len(text) // size)
    more = f"; go on with {READ_RESULT.name}(tool_call_id='{call_id}', page={number + 1})" if number < count else ""
    return f"{text[(number - 1) * size : number * size]}\n\n[page {number} of {count}{more}]"


class ResultTools:
    """`Toolset` of reading on; the agent loop offers its tool in chats that have a large result."""

    name = READ_RESULT.toolset

    async def get_tools(self, runtime: Runtime, caller: Caller, agent: AgentContext) -> list[Tool]:
        """Nothing by itself."""
        return []

    async def call_tool(
        self,
        runtime: Runtime,
        caller: Caller,
        tool: Tool,
        arguments: Mapping[str, JsonValue],
        identity: CallIdentity,
    ) -> ToolResult:
        """A page of a result of this chat."""
        call_id, page = str(arguments.get("tool_call_id")), arguments.get("page", 1)
        query = select(ToolCallRow.whole_result).where(
            ToolCallRow.chat_id == identity.chat_id,
            ToolCallRow.tool_call_id == call_id,
            ToolCallRow.whole_result.is_not(None),
        )
        rows = await runtime.database.read(query)
        if not rows:
            return ToolResult(f"Error: arguments.tool_call_id: no large result of '{call_id}' is kept", is_error=True)
        size = runtime.settings.tool_result_page
        count = -(-len(rows[0].whole_result) // size)
        if not isinstance(page, int) or not 1 <= page <= count:
            return ToolResult(f"Error: arguments.page: must be between 1 and {count}", is_error=True)
        return ToolResult(page_of(rows[0].whole_result, page, size, call_id))

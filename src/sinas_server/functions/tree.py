"""An execution with all that it asked for, and what those asked for, as a tree."""

from typing import Annotated
from uuid import UUID

from fastapi import Path, Response
from pydantic import Field
from sqlalchemy import select

from sinas_server.functions.executions import MISSING, seen_execution
from sinas_server.functions.tables import ExecutionRow, Trigger
from sinas_server.functions.views import StepResponse, step_view
from sinas_server.kernel.http import CurrentCaller, CurrentDb, JsonAnswer, new_router

tree_router = new_router("/executions", "executions")
MAX_NODES = 1000


class TreeNode(StepResponse):
    """An execution and those that its code asked for."""

    trigger_type: Trigger = Field(description="What started it.")
    chat_id: UUID | None = Field(description="The chat whose agent called it.")
    tool_call_id: str | None = Field(description="The tool call of that agent.")
    children: list["TreeNode"] = Field(description="What it asked for, in order.")


@tree_router.get(
    "/{execution_id}/tree",
    response_model=TreeNode,
    summary="Get an execution with all that was called from inside",
    responses=MISSING,
)
async def tree(
    execution_id: Annotated[UUID, Path(description="The execution's id.")], db: CurrentDb, caller: CurrentCaller
) -> Response:
    """At most 1000 executions, the first that were asked for; `X-Truncated: true` says that there are more."""
    root = await seen_execution(db, caller, execution_id)
    below = select(ExecutionRow.id).where(ExecutionRow.id == root.id).cte("below", recursive=True)
    below = below.union(select(ExecutionRow.id).where(ExecutionRow.parent_id == below.c.id))
    query = select(ExecutionRow).where(ExecutionRow.id.in_(select(below.c.id)), ExecutionRow.id != root.id)
    rows = list(await db.scalars(query.order_by(ExecutionRow.created_at, ExecutionRow.id).limit(MAX_NODES)))
    shown = rows[: MAX_NODES - 1]
    children: dict[UUID | None, list[ExecutionRow]] = {}
    for row in shown:
        children.setdefault(row.parent_id, []).append(row)
    headers = {"X-Truncated": "true"} if len(rows) > len(shown) else None
    return JsonAnswer(_node(root, children), headers=headers)


def _node(row: ExecutionRow, children: dict[UUID | None, list[ExecutionRow]]) -> dict[str, object]:
    return {
        **step_view(row),
        "trigger_type": row.trigger_type,
        "chat_id": row.chat_id,
        "tool_call_id": row.tool_call_id,
        "children": [_node(child, children) for child in children.get(row.id, ())],
    }

"""What asynchronous hooks make of an answer already given: the stored message changes, not what was streamed."""

from uuid import UUID

from sqlalchemy import delete, or_, select, update

from sinas_server.backends.db.direct import constant
from sinas_server.chats.hooks import late_content
from sinas_server.chats.tables import LateHookRow, MessageRow, SummaryRow
from sinas_server.functions.tables import ENDED, ExecutionRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime

EVERY_SECONDS = 1.0


_ENDED = (
    select(LateHookRow.execution_id)
    .outerjoin(ExecutionRow, ExecutionRow.id == LateHookRow.execution_id)
    .where(or_(ExecutionRow.id.is_(None), ExecutionRow.status.in_(list(map(constant, ENDED)))))
    .order_by(LateHookRow.turn_id, LateHookRow.index)
)


async def apply_late_hooks(runtime: Runtime) -> None:
    """One look: what hooks that have ended returned is applied once, in the order in which the agent lists them."""
    for row in await runtime.database.lookup(_ENDED, {}):
        await _apply(runtime, row.execution_id)


async def _apply(runtime: Runtime, execution_id: UUID) -> None:
    async with runtime.database.unit() as db:
        query = delete(LateHookRow).where(LateHookRow.execution_id == execution_id)
        late = (await db.execute(query.returning(LateHookRow.turn_id, LateHookRow.step))).one_or_none()
        execution = await db.get(ExecutionRow, execution_id)
        content = None if execution is None else late_content(execution)
        if late is None or content is None:
            return
        changed = await db.execute(
            update(MessageRow)
            .where(MessageRow.turn_id == late.turn_id, MessageRow.step == late.step, MessageRow.role == "assistant")
            .values(content=content, native=None, runs=None)
            .returning(MessageRow.chat_id, MessageRow.created_at),
            execution_options={"synchronize_session": False},
        )
        for chat_id, created_at in changed:  # what a summary says of it may have to be forgotten
            later = (SummaryRow.chat_id == chat_id, SummaryRow.created_at > created_at)
            await db.execute(delete(SummaryRow).where(*later))


LATE_HOOKS_LOOP = Loop(name="apply late hooks", every_seconds=EVERY_SECONDS, step=apply_late_hooks)

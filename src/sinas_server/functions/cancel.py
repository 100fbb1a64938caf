"""Cancelling executions, with those they wait for."""

from functools import partial
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update

from sinas_server.functions.concurrency import admit
from sinas_server.functions.execute import topic
from sinas_server.functions.tables import ENDED, QUEUE, ExecutionRow, Status
from sinas_server.identity.execution_grants import closing_grants
from sinas_server.kernel.job import cancel_topic
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db


async def cancel_executions(db: Db, runtime: Runtime, which: ColumnElement[bool]) -> set[UUID]:
    """Cancel the executions selected and those they wait for, after this transaction: which of all these had not ended.

    What runs is killed, what is queued never starts, and the tokens of both are void.
    """
    chosen = select(ExecutionRow.id).where(which, ExecutionRow.status.not_in(ENDED))
    tree = chosen.cte("tree", recursive=True)
    tree = tree.union_all(select(ExecutionRow.id).where(ExecutionRow.parent_id == tree.c.id, ExecutionRow.depth > 0))
    statement = (
        update(ExecutionRow)
        .where(ExecutionRow.id.in_(select(tree.c.id)), ExecutionRow.status.not_in(ENDED))
        .values(status=Status.CANCELLED, error="Canceled", completed_at=func.now(), lease_until=None)
        .returning(ExecutionRow.id, ExecutionRow.function_id, ExecutionRow.max_concurrency, ExecutionRow.worker)
    )
    rows = (await db.execute(statement, execution_options={"synchronize_session": False})).all()
    canceled = {row.id for row in rows}
    if canceled:
        await db.execute(closing_grants(select(ExecutionRow.id).where(ExecutionRow.id.in_(canceled))))
        db.after_commit(lambda: runtime.signals.signal(cancel_topic(QUEUE)))
    for found in canceled:
        db.after_commit(partial(runtime.signals.signal, topic(found)))
    # What runs makes room when its worker has killed it.
    limited = [row for row in rows if row.max_concurrency is not None and row.worker is None]
    for function_id in {row.function_id for row in limited}:
        db.after_commit(partial(admit, runtime, function_id))
    return canceled

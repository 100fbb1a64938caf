"""What becomes of the executions of a user who is deleted: that they ran is kept, what was in them is not."""

from uuid import UUID

from sqlalchemy import update

from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db


async def forget_executions(db: Db, runtime: Runtime, user_id: UUID) -> None:
    """Cancel what runs for the user and erase who he was and what went in and out (`kernel.runtime.Departure`)."""
    await cancel_executions(db, runtime, ExecutionRow.user_id == user_id)
    emptied = dict.fromkeys(("user_email", "stdout", "stderr"), "")
    cleared = dict.fromkeys(("output_data", "error", "traceback"))
    await db.execute(
        update(ExecutionRow).where(ExecutionRow.user_id == user_id).values(**emptied, **cleared, input_data={}),
        execution_options={"synchronize_session": False},
    )

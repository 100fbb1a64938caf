"""The access token of a running execution: worth something from claim to end, and never more than its principal."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Delete, Select, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from sinas_server.identity.tables import ExecutionGrantRow, UserRow
from sinas_server.identity.tokens import ExecutionToken, mint_execution_token
from sinas_server.kernel.runtime import Runtime

COLUMNS = ("execution_id", "user_id", "api_key_id", "owner_ids", "depth", "expires_at")
"""What `opening_grants` wants to know of each execution, in this order."""


def opening_grants(executions: Select[*tuple[object, ...]]) -> ReturningInsert[UUID, UUID, datetime]:
    """The statement that opens a grant for the executions selected, whose `COLUMNS` those are.

    For use within a larger statement, so that a token is worth something exactly if the execution was begun. It gives
    what `grant_token` needs, and nothing where the user is gone. An earlier attempt's token becomes void. `owner_ids`
    holds the function's owner beside those of the functions that wait for it.
    """
    names = [*COLUMNS, "token_id"]
    user_id = list(executions.selected_columns)[COLUMNS.index("user_id")]
    # Otherwise one whose user is gone would fail the claim of all that are due, each time.
    known = executions.where(select(UserRow.id).where(UserRow.id == user_id).scalar_subquery().is_not(None))
    statement = insert(ExecutionGrantRow).from_select(names, known.add_columns(func.gen_random_uuid()))
    renewed = statement.on_conflict_do_update(
        index_elements=["execution_id"], set_={name: statement.excluded[name] for name in names[1:]}
    )
    return renewed.returning(ExecutionGrantRow.execution_id, ExecutionGrantRow.token_id, ExecutionGrantRow.expires_at)


def closing_grants(executions: Select[UUID]) -> Delete:
    """The statement that voids the tokens of the executions selected, for use within a larger one."""
    return delete(ExecutionGrantRow).where(ExecutionGrantRow.execution_id.in_(executions))


def grant_token(runtime: Runtime, token: ExecutionToken, expires_at: datetime) -> str:
    """The token of a grant that was opened."""
    return mint_execution_token(runtime.settings.signing_key, token, expires_at)

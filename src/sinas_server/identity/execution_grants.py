"""The access token of a running execution: worth something from claim to end, and never more than its principal."""

from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from sinas_server.identity.resolve import Principal
from sinas_server.identity.tables import ExecutionGrantRow
from sinas_server.identity.tokens import ExecutionToken, mint_execution_token
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from sinas_server.kit.clock import now


async def open_execution_grant(
    db: Db, runtime: Runtime, execution_id: UUID, principal: Principal, seconds: float
) -> str:
    """The token for one attempt of an execution, valid for `seconds` at most; an earlier attempt's becomes void.

    `principal.owner_ids` holds the function's owner beside those of the functions that wait for it.
    """
    expires_at = now() + timedelta(seconds=seconds)
    token = ExecutionToken(execution_id, uuid4())
    values = {
        "token_id": token.token_id,
        "user_id": principal.user_id,
        "api_key_id": principal.api_key_id,
        "owner_ids": list(principal.owner_ids),
        "depth": principal.depth,
        "expires_at": expires_at,
    }
    statement = insert(ExecutionGrantRow).values(execution_id=execution_id, **values)
    await db.execute(statement.on_conflict_do_update(index_elements=["execution_id"], set_=values))
    return mint_execution_token(runtime.settings.signing_key, token, expires_at)


async def close_execution_grant(db: Db, execution_id: UUID) -> None:
    """Void the token of an execution that has ended."""
    await db.execute(delete(ExecutionGrantRow).where(ExecutionGrantRow.execution_id == execution_id))

"""The access token of a running execution: worth something from claim to end, and never more than its principal."""

from datetime import timedelta
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, DateTime, Delete, Insert, Integer, Select, Uuid, bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert

from sinas_server.identity.resolve import Principal
from sinas_server.identity.tables import ExecutionGrantRow
from sinas_server.identity.tokens import ExecutionToken, mint_execution_token
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now

_NEW = {
    "token_id": bindparam("grant_token_id", type_=Uuid),
    "user_id": bindparam("grant_user_id", type_=Uuid),
    "api_key_id": bindparam("grant_api_key_id", type_=Uuid),
    "owner_ids": bindparam("grant_owner_ids", type_=ARRAY(Uuid)),
    "depth": bindparam("grant_depth", type_=Integer),
    "expires_at": bindparam("grant_expires_at", type_=DateTime(timezone=True)),
}


def opening_grants(executions: Select[UUID]) -> Insert:
    """The statement that opens a grant for the executions selected; its parameters are those of `mint_grant`.

    For use within a larger statement, so that a token is worth something exactly if the execution was begun.
    """
    ids = executions.subquery()
    source = select(ids.c[0], *_NEW.values())
    statement = insert(ExecutionGrantRow).from_select(["execution_id", *_NEW], source)
    return statement.on_conflict_do_update(
        index_elements=["execution_id"], set_={name: statement.excluded[name] for name in _NEW}
    )


def closing_grants(executions: Select[UUID]) -> Delete:
    """The statement that voids the tokens of the executions selected, for use within a larger one."""
    return delete(ExecutionGrantRow).where(ExecutionGrantRow.execution_id.in_(executions))


def mint_grant(
    runtime: Runtime, execution_id: UUID, principal: Principal, seconds: float
) -> tuple[str, dict[str, object]]:
    """A token for one attempt of an execution, valid for `seconds` at most, and the parameters of `opening_grants`.

    An earlier attempt's becomes void. `principal.owner_ids` holds the function's owner beside those of the functions
    that wait for it.
    """
    expires_at = now() + timedelta(seconds=seconds)
    token = ExecutionToken(execution_id, uuid4())
    parameters: dict[str, object] = {
        "grant_token_id": token.token_id,
        "grant_user_id": principal.user_id,
        "grant_api_key_id": principal.api_key_id,
        "grant_owner_ids": list(principal.owner_ids),
        "grant_depth": principal.depth,
        "grant_expires_at": expires_at,
    }
    return mint_execution_token(runtime.settings.signing_key, token, expires_at), parameters

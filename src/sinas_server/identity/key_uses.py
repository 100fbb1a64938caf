"""When API keys were last used: remembered in memory by the resolver, written in batches."""

from sqlalchemy import ARRAY, DateTime, Uuid, bindparam, column, func, update

from sinas_server.identity.tables import ApiKeyRow
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime

_USED = (
    func.unnest(bindparam("ids", type_=ARRAY(Uuid)), bindparam("times", type_=ARRAY(DateTime(timezone=True))))
    .table_valued(column("id", Uuid), column("at", DateTime(timezone=True)), name="used")
    .render_derived()
)
_WRITE = (
    update(ApiKeyRow)
    .where(ApiKeyRow.id == _USED.c.id)
    .values(last_used_at=func.greatest(ApiKeyRow.last_used_at, _USED.c.at))
    .execution_options(synchronize_session=False)
)


async def write_key_uses(runtime: Runtime) -> None:
    """Write down which keys this process has seen since the last time; nothing is lost if the database is away."""
    used = dict(runtime.used_keys)
    if not used:
        return
    await runtime.database.rows(_WRITE, {"ids": list(used), "times": list(used.values())})
    for key_id, at in used.items():
        if runtime.used_keys[key_id] == at:
            del runtime.used_keys[key_id]


KEY_USE_LOOP = Loop("api key uses", 30, write_key_uses)
"""Runs in every API process, beside its requests; the process also calls `write_key_uses` when it stops."""

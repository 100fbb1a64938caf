"""Rotating `ENCRYPTION_KEY` over HTTP."""

from fastapi import Response
from pydantic import BaseModel, Field

from sinas_server.admin.system import SYSTEM
from sinas_server.kernel.http import CurrentCaller, JsonAnswer, Run, new_router
from sinas_server.kernel.outbox import audit
from sinas_server.kernel.rotate import rotate

rotation_router = new_router("/system", "system")


class RotatedKeys(BaseModel):
    """What became of the values that were encrypted."""

    resealed: int = Field(description="Values that were under another key, and are under the first one now.")
    unreadable: int = Field(description="Values under a key that is not in `ENCRYPTION_KEY`; they were left alone.")


@rotation_router.post("/rotate-keys", response_model=RotatedKeys, summary="Encrypt everything under the first key")
async def rotate_keys(runtime: Run, caller: CurrentCaller) -> Response:
    """After a new key was put in front of `ENCRYPTION_KEY` everywhere: then the keys behind it can be removed.

    It may be repeated, and nothing stands still meanwhile.
    """
    caller.require(SYSTEM.name, "update", None)
    done = await rotate(runtime.database, tuple(runtime.kinds.values()))
    found = {"resealed": done.resealed, "unreadable": done.unreadable}
    async with runtime.database.unit() as db:
        await audit(db, caller, "rotate", ("encryption_key", ""), found)
    return JsonAnswer(found)

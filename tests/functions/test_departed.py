"""Executions of users who were deleted: they fail, and hold nobody up."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import ColumnElement, func

from sinas_server.functions import execute
from sinas_server.functions.cancel import cancel_executions
from sinas_server.functions.execute import Order
from sinas_server.functions.kind import FUNCTION
from sinas_server.functions.tables import Trigger
from sinas_server.identity.resolve import Principal, act_for
from sinas_server.kernel import lookup
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Db
from tests.functions.conftest import Declare, run, until, working
from tests.functions.test_executions import record
from tests.people import Person

GONE = "The user for whom it was to run was deleted"


async def test_a_dead_letter_of_somebody_who_is_gone_may_be_retried(
    runtime: Runtime, admin: Person, user: Person, guest: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("f", by=admin.http)
    dead = await record(runtime, guest, status="FAILED", dead_at=func.now(), max_retries=1)
    assert (await admin.http.delete(f"/api/v1/users/{guest.id}")).status_code == 204
    assert (await admin.http.post(f"/api/v1/queue/dlq/{dead}/retry")).status_code == 200
    row = await until(admin, str(dead), "FAILED")
    assert (row["cause"], row["error"]) == ("function", GONE)
    assert (await run(admin, "f", {"a": 1}))["result"] == {"a": 1}


async def test_one_that_is_asked_for_while_its_user_is_deleted(
    runtime: Runtime,
    admin: Person,
    guest: Person,
    declare: Declare,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Just after what ran for the user was cancelled, by a request that had been let in before."""
    await declare("f", by=admin.http)
    caller = await act_for(runtime, Principal(guest.id), "session")
    function = await lookup.find(runtime.database, FUNCTION, "default", "f")
    late = uuid4()
    assert function is not None

    async def cancel_then_another_comes(db: Db, runtime: Runtime, which: ColumnElement[bool]) -> set[UUID]:
        canceled = await cancel_executions(db, runtime, which)
        await execute.start_now(runtime, caller, function, Order(trigger=Trigger.API, input={}, waits=True, id=late))
        return canceled

    monkeypatch.setattr("sinas_server.functions.departure.cancel_executions", cancel_then_another_comes)
    assert (await admin.http.delete(f"/api/v1/users/{guest.id}")).status_code == 204
    async with working(runtime):  # only now, so that none has taken it before the user was gone
        row = await until(admin, str(late), "FAILED")
        assert (row["cause"], row["error"]) == ("function", GONE)
        assert (await run(admin, "f", {"a": 1}))["result"] == {"a": 1}

"""Sets of packages that several processes make and use at the same time."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from sqlalchemy import func, insert, select, update

from sinas_server.dependencies import follow, standing
from sinas_server.dependencies.bootstrap import CLIENT, bootstrap
from sinas_server.dependencies.kind import DEPENDENCY
from sinas_server.dependencies.sets import newest_set, note_ready, ready_set, set_in_force, try_again
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM, Caller
from sinas_server.kernel.kind import Kind, Spec
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.store import Filter, Resource
from sinas_server.kernel.unit import Database, Db
from sinas_server.kit.clock import now
from tests.dependencies.conftest import approve, eventually, following, resolving, sets, until
from tests.identity.waiting import waits_or_ends
from tests.people import Person


async def test_a_set_that_was_read_earlier_does_not_take_the_place_of_a_later_one(
    admin: Person, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another scheduler reads and resolves what is approved while the first one has just read what was before."""
    find, has_read = store.find, asyncio.Event()

    async def then_others_do(db: Db, caller: Caller, kind: Kind[Spec], only: Filter) -> list[Resource[Spec]]:
        found = await find(db, caller, kind, only)
        if not has_read.is_set():
            has_read.set()
            await approve(admin, "tomli-w")
            async with resolving(dataclasses.replace(runtime, worker_name="other")):
                while "COMPLETED" not in await _statuses(runtime):
                    await asyncio.sleep(0.01)
        return found

    await approve(admin, "iniconfig")
    with monkeypatch.context() as patch:
        patch.setattr(store, "find", then_others_do)
        async with resolving(runtime):
            while await _statuses(runtime) != ["COMPLETED", "COMPLETED"]:
                await asyncio.sleep(0.01)
    in_force = await set_in_force(runtime.database)
    assert in_force is not None
    assert in_force.requirements == ["iniconfig", "tomli-w"]


async def _statuses(runtime: Runtime) -> list[str]:
    return [row.status for row in await runtime.database.rows(select(PackageSetRow.status))]


async def test_what_waits_to_be_tried_again_does_not_hold_up_what_is_asked_for_now(
    admin: Person, resolver: None, runtime: Runtime
) -> None:
    waiting = {"run_at": func.now() + func.make_interval(0, 0, 0, 0, 1), "read_at": now(), "message": "out of reach"}
    await runtime.database.rows(insert(PackageSetRow).values(**waiting))
    await approve(admin, "iniconfig")
    await until(admin, "iniconfig", "installing")
    await runtime.database.rows(update(PackageSetRow).values(run_at=func.now()))

    async def is_over() -> bool:
        return [each["status"] for each in await sets(admin)] == ["installing"]

    await eventually(is_over, lambda: "the one that waited is superseded")


async def test_a_set_that_is_made_anew_while_it_is_used_is_taken_up_again(
    admin: Person, resolver: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker could not install it, a moment before this one has noted that it uses it."""
    failed = asyncio.Event()

    async def after_another_has_failed(runtime: Runtime, set_id: UUID) -> None:
        row = await set_in_force(runtime.database)
        if row is not None and not failed.is_set():
            failed.set()
            await try_again(runtime, row, "the disk is full")
        await note_ready(runtime, set_id)

    monkeypatch.setattr(follow, "note_ready", after_another_has_failed)
    await approve(admin, "iniconfig")
    async with following(runtime):
        async with asyncio.timeout(60):
            await failed.wait()
        waiting = await until(admin, "iniconfig", "pending")
        assert waiting["message"].startswith("the disk is full")
        await runtime.database.rows(update(PackageSetRow).values(run_at=func.now()))
        await until(admin, "iniconfig", "ready")


async def test_a_package_that_becomes_ready_while_it_is_listed_has_a_version(
    admin: Person, resolver: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await approve(admin, "iniconfig")
    await until(admin, "iniconfig", "installing")
    looked: list[str] = []

    def then_it_is_ready(look: Callable[[Database], Awaitable[PackageSetRow | None]]) -> Callable[..., object]:
        async def looks(database: Database) -> PackageSetRow | None:
            found = await look(database)
            if not looked:
                for row in await database.rows(select(PackageSetRow.id)):
                    await note_ready(runtime, row.id)
            looked.append(look.__name__)
            return found

        return looks

    for look in (newest_set, ready_set):
        monkeypatch.setattr(standing, look.__name__, then_it_is_ready(look))
    [listed] = (await admin.http.get("/api/v1/dependencies")).json()
    assert looked
    assert (listed["status"] == "ready") == (listed["installed_version"] is not None)


async def test_two_processes_that_start_at_once_approve_the_client_once(admin: Person, runtime: Runtime) -> None:
    async with runtime.database.unit() as db:
        spec = store.validated(DEPENDENCY, {"package_name": CLIENT})
        await store.create(db, SYSTEM, DEPENDENCY, ("", CLIENT), spec)
        second = asyncio.create_task(bootstrap(runtime, SYSTEM))
        await waits_or_ends(runtime, second)
    await second
    assert [each["package_name"] for each in (await admin.http.get("/api/v1/dependencies")).json()] == [CLIENT]

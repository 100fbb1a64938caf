"""From an approval to a function that imports the package, with real packages from the machine's index."""

import asyncio
import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, update

from sinas_server.backends.sandbox.native import NativeSandbox
from sinas_server.dependencies import retention
from sinas_server.dependencies.kind import DEPENDENCY
from sinas_server.dependencies.tables import PackageSetRow
from sinas_server.kernel import store
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from sinas_server.kit.clock import now
from tests.dependencies.conftest import Json, approve, call, eventually, following, sets, until
from tests.people import Person

PATH = "/api/v1/dependencies"
INICONFIG = """import iniconfig
from importlib.metadata import version
def handler(input_data, context):
    return version('iniconfig')
"""
UNREACHABLE = "http://127.0.0.1:9/simple"


def packages(one: Json) -> dict[str, str]:
    return {each["name"]: each["version"] for each in one["packages"]}


async def test_from_an_approval_to_a_function_and_back(
    admin: Person, user: Person, functions: NativeSandbox, runtime: Runtime
) -> None:
    missing = await call(user, INICONFIG)
    assert missing["error"] == (
        "ModuleNotFoundError: No module named 'iniconfig'; functions do not have the package 'iniconfig': "
        "an administrator can approve it with "
        'POST /api/v1/dependencies {"package_name": "iniconfig"}, or see with GET what became of it'
    )
    await approve(admin, "iniconfig", "<2.1")
    assert (await until(admin, "iniconfig", "ready"))["installed_version"] == "2.0.0"
    assert (await call(user, INICONFIG))["result"] == "2.0.0"
    [made] = await sets(admin)
    assert (made["status"], made["requirements"]) == ("ready", ["iniconfig<2.1"])
    assert packages(made) == {"iniconfig": "2.0.0"}
    assert functions.preloaded["iniconfig"] is None

    bad = await approve(admin, "python-dateutil", ">=999")
    failed = await until(admin, "python-dateutil", "failed")
    assert "python-dateutil" in failed["message"]
    assert ">=999" in failed["message"]
    assert [each["status"] for each in await sets(admin)] == ["failed", "ready"]
    listed = {each["package_name"]: each["status"] for each in (await admin.http.get(PATH)).json()}
    assert listed == {"iniconfig": "ready", "python-dateutil": "failed"}
    assert (await call(user, INICONFIG))["result"] == "2.0.0", "the set before stays in force"

    assert (await admin.http.delete(f"{PATH}/{bad['id']}")).status_code == 204
    assert (await admin.http.delete(f"{PATH}/iniconfig")).status_code == 204

    async def is_empty() -> bool:
        newest = (await sets(admin))[0]
        return newest["status"] == "ready" and not packages(newest)

    await eventually(is_empty, lambda: "a set without packages")
    assert (await call(user, INICONFIG))["status"] == "error"
    directories = runtime.settings.sinas_data_dir / "packages"

    async def is_removed() -> bool:
        return [path.name for path in directories.iterdir()] == [".installing"]

    await eventually(is_removed, lambda: f"only .installing: {list(directories.iterdir())}")


async def test_what_the_platform_approved_itself_holds_nothing_up(
    admin: Person, functions: NativeSandbox, runtime: Runtime
) -> None:
    async with runtime.database.unit() as db:
        spec = store.validated(DEPENDENCY, {"package_name": "iniconfig", "version": ">=999"})
        await store.create(db, SYSTEM, DEPENDENCY, ("", "iniconfig"), spec)
    await approve(admin, "tomli-w")
    await until(admin, "tomli-w", "ready")
    failed = await until(admin, "iniconfig", "failed")
    assert ">=999" in failed["message"]
    assert list((await sets(admin))[0]["left_out"]) == ["iniconfig>=999"]


async def test_an_index_out_of_reach_is_tried_again(
    admin: Person, functions: NativeSandbox, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", UNREACHABLE)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(runtime.settings.sinas_data_dir / "empty"))
    await approve(admin, "iniconfig")

    async def waits() -> bool:
        newest = (await sets(admin))[0]
        return newest["status"] == "pending" and newest["message"] is not None

    await eventually(waits, lambda: "it waits")
    message = (await until(admin, "iniconfig", "pending"))["message"]
    assert "127.0.0.1:9" in message
    assert "tried again after 15 seconds" in message
    monkeypatch.delenv("UV_DEFAULT_INDEX")
    await runtime.database.rows(update(PackageSetRow).values(run_at=func.now()))
    await until(admin, "iniconfig", "ready")


async def test_what_functions_can_use_stays_ready_while_another_set_is_made(
    admin: Person, functions: NativeSandbox, runtime: Runtime
) -> None:
    await approve(admin, "iniconfig")
    await until(admin, "iniconfig", "ready")
    states: list[str] = []
    await approve(admin, "tomli-w")

    async def is_ready() -> bool:
        listed = {each["package_name"]: each["status"] for each in (await admin.http.get(PATH)).json()}
        states.append(listed["iniconfig"])
        return bool(listed["tomli-w"] == "ready")

    await eventually(is_ready, lambda: "the other one is ready")
    assert set(states) == {"ready"}


async def test_one_can_ask_again(admin: Person, resolver: None) -> None:
    answer = await admin.http.post(f"{PATH}/sets")
    assert (answer.status_code, answer.json()["status"]) == (202, "pending")

    async def is_locked() -> bool:
        return [each["status"] for each in await sets(admin)] == ["installing"]  # nobody is there to use it

    await eventually(is_locked, lambda: "installing")


async def test_a_set_that_cannot_be_installed_is_made_anew(
    admin: Person, resolver: None, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await approve(admin, "iniconfig")
    await until(admin, "iniconfig", "installing")
    monkeypatch.setenv("UV_DEFAULT_INDEX", UNREACHABLE)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(runtime.settings.sinas_data_dir / "empty"))
    async with following(runtime) as sandbox:
        waiting = await until(admin, "iniconfig", "pending")
        assert "127.0.0.1:9" in waiting["message"]
        assert sandbox.packages_in_use() == frozenset()
        monkeypatch.delenv("UV_DEFAULT_INDEX")
        await runtime.database.rows(update(PackageSetRow).values(run_at=func.now()))
        assert (await until(admin, "iniconfig", "ready"))["message"] is None


async def test_many_changes_at_once_end_in_one_set_with_all_of_them(
    admin: Person, functions: NativeSandbox, runtime: Runtime
) -> None:
    names = ("iniconfig", "tomli-w", "six")
    await asyncio.gather(*(approve(admin, name) for name in names))
    for name in names:
        await until(admin, name, "ready")
    statuses = list[str]()

    async def settled() -> bool:  # a set whose packages came with a later one may be looked at after that one
        statuses[:] = [row.status for row in await runtime.database.read(select(PackageSetRow.status))]
        return len(statuses) == 3 and set(statuses) <= {"COMPLETED", "SUPERSEDED"}

    await eventually(settled, lambda: f"one set is in force: {statuses}")


async def test_another_machine_builds_the_set_from_the_lock(
    admin: Person, functions: NativeSandbox, runtime: Runtime, tmp_path: Path
) -> None:
    await approve(admin, "iniconfig")
    await until(admin, "iniconfig", "ready")
    settings = runtime.settings.model_copy(update={"sinas_data_dir": tmp_path / "other"})
    async with following(dataclasses.replace(runtime, settings=settings)) as sandbox:

        async def is_used() -> bool:
            return bool(sandbox.packages_in_use())

        await eventually(is_used, lambda: "the set is used")
        assert sandbox.packages_in_use() == functions.packages_in_use()
    assert len(list((tmp_path / "other" / "packages").glob("*/iniconfig"))) == 1


async def test_a_lost_resolver_is_followed_by_another(
    admin: Person, functions: NativeSandbox, runtime: Runtime
) -> None:
    lost = {"status": "RUNNING", "attempt": 1, "worker": "gone", "lease_until": func.now(), "read_at": func.now()}
    async with runtime.database.unit() as db:
        spec = store.validated(DEPENDENCY, {"package_name": "iniconfig"})
        await store.create(db, SYSTEM, DEPENDENCY, ("", "iniconfig"), spec)
        await db.execute(update(PackageSetRow).values(**lost))
    await until(admin, "iniconfig", "ready")


async def test_old_sets_are_forgotten_and_what_is_needed_is_kept(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "KEPT", 3)
    old = now() - timedelta(days=30)
    made: list[dict[str, object]] = [
        # By age, the oldest first; the one in force is the oldest of all.
        {"status": "COMPLETED", "read_at": now(), "ready_at": now(), "message": "in force"},
        {"status": "SUPERSEDED", "message": "superseded"},
        {"status": "COMPLETED", "read_at": old, "ready_at": old, "message": "replaced"},
        {"status": "FAILED", "message": "failed"},
        {"status": "PENDING", "message": "to be tried again"},
        *[dict[str, object](status="FAILED", message=f"history {number}") for number in range(3)],
    ]
    for number, values in enumerate(made):
        later = old + timedelta(minutes=number)
        await runtime.database.rows(insert(PackageSetRow).values(created_at=later, **values))
    await runtime.database.rows(insert(PackageSetRow).values(status="SUPERSEDED", message="of today"))
    assert await _messages(runtime) == {str(values["message"]) for values in made} | {"of today"}
    await retention.PRUNE_LOOP.step(runtime)
    kept = {"in force", "to be tried again", "history 0", "history 1", "history 2", "of today"}
    assert await _messages(runtime) == kept
    await retention.PRUNE_LOOP.step(runtime)
    assert await _messages(runtime) == kept


async def _messages(runtime: Runtime) -> set[str | None]:
    return {row.message for row in await runtime.database.rows(select(PackageSetRow.message))}

"""The pools of sandboxes over HTTP: each worker is asked, and says what it did."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.native import NativeSandbox
from sinas_server.catalog import COMMANDS
from sinas_server.kernel.command import ask, obey
from sinas_server.kernel.heartbeat import beating, read_heartbeats
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.people import Person

PATH = "/api/v1/containers"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"pool_acquire_timeout": 20.0})


@asynccontextmanager
async def pool(runtime: Runtime, name: str) -> AsyncIterator[NativeSandbox]:
    """A function worker as far as it concerns its sandboxes."""
    sandbox = NativeSandbox(SandboxConfig(min_size=2, min_idle=1, max_size=4))
    await sandbox.start()
    own = replace(runtime, worker_name=name, sandbox=sandbox)
    obeying = asyncio.create_task(obey(own, COMMANDS))
    try:
        async with beating(own, "functions"):
            while name not in {beat.name for beat in await read_heartbeats(runtime)}:
                await asyncio.sleep(0.01)
            while not any(answer.error is None for answer in await ask(runtime, "sandboxes.tell", {name: {}}, 2)):
                continue
            yield sandbox
    finally:
        obeying.cancel()
        await asyncio.gather(obeying, return_exceptions=True)
        await sandbox.close()


@pytest.fixture
async def pools(runtime: Runtime) -> AsyncIterator[list[NativeSandbox]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(pool(runtime, f"functions-{number}")) for number in range(2)]


async def test_stats_of_all_workers(pools: list[NativeSandbox], admin: Person) -> None:
    found = (await admin.http.get(f"{PATH}/stats")).json()
    assert (found["idle"], found["in_use"], found["total"]) == (4, 0, 4)
    assert (found["max_size"], found["max_executions"]) == (8, 1)
    assert len({each["name"] for each in found["idle_containers"]}) == 4
    assert all(set(each) == {"name", "executions", "age_seconds"} for each in found["idle_containers"])
    assert found["in_use_containers"] == []
    assert [(each["worker"], each["idle"], each["error"]) for each in found["workers"]] == [
        ("functions-0", 2, None),
        ("functions-1", 2, None),
    ]
    assert {each["driver"] for each in found["workers"]} == {str(pools[0].level.name)}


async def test_scaling_divides_among_the_workers(pools: list[NativeSandbox], admin: Person) -> None:
    up = (await admin.http.post(f"{PATH}/scale", json={"target": 7})).json()
    assert (up["action"], up["previous"], up["current"], up["added"], up["removed"]) == ("scale_up", 4, 7, 3, 0)
    assert [each["current"] for each in up["workers"]] == [4, 3]
    down = (await admin.http.post(f"{PATH}/scale", json={"target": 2})).json()
    assert (down["action"], down["previous"], down["current"], down["removed"]) == ("scale_down", 7, 2, 5)
    same = (await admin.http.post(f"{PATH}/scale", json={"target": 2})).json()
    assert (same["action"], same["added"], same["removed"]) == ("none", 0, 0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"target": 9}, "must be at most 8: SANDBOX_MAX_SIZE of 2 function workers together"),
        ({"target": -1}, "greater than or equal to 0"),
        ({}, "Field required"),
    ],
)
async def test_targets_that_cannot_be(
    pools: list[NativeSandbox], admin: Person, body: dict[str, int], reason: str
) -> None:
    answer = await admin.http.post(f"{PATH}/scale", json=body)
    assert answer.status_code == 422
    problem = answer.json()["detail"][0]
    assert problem["loc"] == ["body", "target"]
    assert reason in problem["msg"]


async def test_reloading(pools: list[NativeSandbox], admin: Person) -> None:
    before = {each["name"] for each in (await admin.http.get(f"{PATH}/stats")).json()["idle_containers"]}
    answer = (await admin.http.post(f"{PATH}/reload")).json()
    assert (answer["status"], answer["idle_containers"], answer["success"], answer["failed"]) == ("completed", 4, 4, 0)
    after = {each["name"] for each in (await admin.http.get(f"{PATH}/stats")).json()["idle_containers"]}
    assert not before & after


async def test_a_worker_that_is_silent_is_named(
    runtime: Runtime, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinas_server.admin.containers.TELL_SECONDS", 1.0)
    silent = replace(runtime, worker_name="functions-9")
    async with pool(runtime, "functions-0"), beating(silent, "functions"):
        while True:
            found = (await admin.http.get(f"{PATH}/stats")).json()
            if [each["error"] is None for each in found.get("workers", [])] == [True, False]:  # a second is short
                break
        assert (found["total"], found["workers"][1]["error"]) == (2, "it did not answer within 1 s")
        while (scaled := await admin.http.post(f"{PATH}/scale", json={"target": 3})).status_code == 503:
            continue
        assert [each["worker"] for each in scaled.json()["workers"]] == ["functions-0"]


async def test_without_workers_there_are_no_sandboxes(admin: Person) -> None:
    stats = (await admin.http.get(f"{PATH}/stats")).json()
    assert (stats["total"], stats["max_size"], stats["workers"]) == (0, 0, [])
    assert (await admin.http.post(f"{PATH}/reload")).json()["idle_containers"] == 0
    assert (await admin.http.post(f"{PATH}/scale", json={"target": 0})).json()["action"] == "none"
    refused = await admin.http.post(f"{PATH}/scale", json={"target": 1})
    assert (refused.status_code, refused.json()["detail"][0]["loc"]) == (422, ["body", "target"])


async def test_workers_of_which_none_answers_are_503(
    runtime: Runtime, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinas_server.admin.containers.TELL_SECONDS", 1.0)
    async with beating(replace(runtime, worker_name="functions-9"), "functions"):
        while (answer := await admin.http.get(f"{PATH}/stats")).status_code == 200:
            continue
    assert answer.status_code == 503
    assert answer.json()["detail"] == "No function worker answers (functions-9: it did not answer within 1 s)"


async def test_ordinary_users_may_not(pools: list[NativeSandbox], user: Person) -> None:
    assert (await user.http.get(f"{PATH}/stats")).status_code == 403
    assert (await user.http.post(f"{PATH}/scale", json={"target": 1})).status_code == 403
    assert (await user.http.post(f"{PATH}/reload")).status_code == 403


async def test_a_command_nobody_knows(runtime: Runtime) -> None:
    async with pool(runtime, "functions-0"):
        answers = await ask(runtime, "sandboxes.paint", {"functions-0": {}}, 30)
    assert answers[0].error == "it knows no command sandboxes.paint: it runs another version"


async def test_a_command_whose_time_is_over_is_not_carried_out(runtime: Runtime) -> None:
    assert (await ask(runtime, "sandboxes.scale", {"functions-0": {"target": 4}}, 0.01))[0].error is not None
    async with pool(runtime, "functions-0") as sandbox:
        assert sandbox.stats().total == 2

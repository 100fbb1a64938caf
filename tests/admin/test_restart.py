"""Restarting by name: sandboxes of both drivers, shared workers, and the containers that the platform runs in."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import cast

import httpx2
import pytest

from sinas_server.backends.sandbox import Ending, Sandbox
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.catalog import COMMANDS
from sinas_server.kernel.command import ask, obey
from sinas_server.kernel.heartbeat import beating, read_heartbeats
from sinas_server.kernel.runtime import Runtime
from tests.admin.test_workers import following
from tests.backends.sandbox.conftest import DRIVERS, task, until
from tests.backends.sandbox.engine import BASE, docker, missing_engine, open_docker
from tests.backends.sandbox.test_pool import idle_names
from tests.functions.conftest import pool_of
from tests.people import Person

LONG = "import time\ndef handler(i, c):\n    print('begun')\n    time.sleep(600)"
NAME = "functions-0"
needs_engine = pytest.mark.skipif(missing_engine() is not None, reason=missing_engine() or "")


async def known(runtime: Runtime) -> None:
    """Until it has given a sign of life."""
    while runtime.worker_name not in {beat.name for beat in await read_heartbeats(runtime)}:
        await asyncio.sleep(0.01)


@asynccontextmanager
async def obeying(runtime: Runtime) -> AsyncIterator[None]:
    """A function worker as far as it does what it is told."""
    task = asyncio.create_task(obey(runtime, COMMANDS))
    try:
        async with beating(runtime, "functions"):
            await known(runtime)
            while not any(answer.error is None for answer in await ask(runtime, "sandboxes.tell", {NAME: {}}, 2)):
                continue
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def equipped(runtime: Runtime, sandbox: Sandbox) -> AsyncIterator[Sandbox]:
    """A function worker with this sandbox."""
    await sandbox.start()
    try:
        async with obeying(replace(runtime, worker_name=NAME, sandbox=sandbox)):
            yield sandbox
    finally:
        await sandbox.close()


@pytest.fixture(params=DRIVERS)
async def pool(request: pytest.FixtureRequest, runtime: Runtime) -> AsyncIterator[Sandbox]:
    async with equipped(runtime, DRIVERS[request.param](SandboxConfig(min_size=2, min_idle=1, max_size=2))) as sandbox:
        yield sandbox


async def restart(person: Person, name: str) -> httpx2.Response:
    return await person.http.post(f"/api/v1/system/containers/{name}/restart", timeout=60)


async def test_a_sandbox_that_waits_is_made_anew(pool: Sandbox, admin: Person) -> None:
    name, other = idle_names(pool)
    answer = await restart(admin, name)
    assert (answer.status_code, answer.json()) == (200, {"status": "restarted", "container": name})
    await until(lambda: len(idle_names(pool) - {name}) == 2, "another one waits in its place")
    assert other in idle_names(pool)
    assert (await restart(admin, name)).status_code == 404
    audited = (await admin.http.get("/api/v1/audit", params={"target_kind": "containers"})).json()
    assert [(entry["action"], entry["target"]) for entry in audited] == [("restart", name)]


async def test_what_runs_in_a_sandbox_ends_and_says_why(pool: Sandbox, admin: Person) -> None:
    begun = asyncio.Event()
    running = asyncio.create_task(pool.run(task(LONG), lambda _name, _text: begun.set()))
    await begun.wait()
    [member] = pool.stats().in_use_members
    assert (await restart(admin, member.name)).json()["status"] == "restarted"
    outcome = await running
    assert (outcome.ending, outcome.error) == (Ending.DIED, "the sandbox was restarted while this ran")
    await until(lambda: pool.stats().idle == 2, "two wait")
    assert (await pool.run(task("def handler(i, c): return 1"))).result == 1


async def test_a_shared_worker_is_replaced(runtime: Runtime, admin: Person) -> None:
    async with following(runtime, NAME) as worker, obeying(worker.runtime):
        await admin.http.post("/api/v1/workers/scale", json={"target_count": 2}, timeout=60)
        first, second = (each["container_name"] for each in (await admin.http.get("/api/v1/workers")).json())
        assert (await restart(admin, first)).json() == {"status": "restarted", "container": first}
        while True:
            now = {each["container_name"] for each in (await admin.http.get("/api/v1/workers")).json()}
            if len(now) == 2 and first not in now:
                break
        assert second in now
        assert len(pool_of(worker).workers()) == 2
        assert (await restart(admin, first)).status_code == 404


@dataclass(frozen=True)
class Project:
    """Containers of a Compose project, and one of another."""

    own: str
    api: str
    stubborn: str
    stranger: str

    def started_at(self, name: str) -> str:
        return cast(str, json.loads(docker("inspect", name))[0]["State"]["StartedAt"])

    def host(self, name: str) -> str:
        return docker("exec", name, "cat", "/etc/hostname")


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    mark = f"test-{secrets.token_hex(4)}"
    made = Project(*(f"{mark}-{what}" for what in ("own", "api", "stubborn", "stranger")))
    try:
        for name in (made.own, made.api, made.stubborn, made.stranger):
            docker(
                *("run", "--detach", "--name", name, *([] if name == made.stubborn else ["--init"])),
                *("--label", f"com.docker.compose.project={'other' if name == made.stranger else mark}"),
                *("--label", f"com.docker.compose.service={name.removeprefix(f'{mark}-')}"),
                *(BASE, "sleep", "600"),
            )
        yield made
    finally:
        docker("rm", "--force", made.own, made.api, made.stubborn, made.stranger)


@pytest.fixture
async def deployed(runtime: Runtime, project: Project) -> AsyncIterator[Project]:
    """The project with a function worker in it, as far as the engine can tell."""
    sandbox = open_docker(SandboxConfig(min_size=1, min_idle=0, max_size=1), own=project.own)
    async with equipped(runtime, sandbox):
        yield project


@needs_engine
async def test_containers_of_the_platform(deployed: Project, runtime: Runtime, admin: Person) -> None:
    async def restarted(name: str) -> None:
        before = deployed.started_at(deployed.api)
        answer = await restart(admin, name)
        assert (answer.status_code, answer.json()) == (200, {"status": "restarted", "container": name})
        assert deployed.started_at(deployed.api) != before

    await restarted(deployed.api)
    await restarted("api")  # its service, of which there is one container
    process = replace(runtime, worker_name="api-of-the-project")
    async with beating(process, "api"):
        await known(process)
        unknown = await restart(admin, "api-of-the-project")  # of this very machine
    assert unknown.status_code == 409


@needs_engine
async def test_a_process_is_restarted_by_its_container(
    deployed: Project, runtime: Runtime, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: deployed.host(deployed.api))
    process = replace(runtime, worker_name="api-of-the-project")
    async with beating(process, "api"):
        await known(process)
        before = deployed.started_at(deployed.api)
        assert (await restart(admin, "api-of-the-project")).json()["status"] == "restarted"
        assert deployed.started_at(deployed.api) != before


@needs_engine
async def test_the_answer_does_not_wait_for_what_it_depends_on(deployed: Project, admin: Person) -> None:
    for name in (deployed.own, deployed.stubborn):
        before = deployed.started_at(name)
        answer = await restart(admin, name)
        assert (answer.status_code, answer.json()["status"]) == (200, "restarting")
        while deployed.started_at(name) == before:
            await asyncio.sleep(0.2)


@needs_engine
async def test_containers_of_others_cannot_be_reached(deployed: Project, admin: Person) -> None:
    before = deployed.started_at(deployed.stranger)
    answer = await restart(admin, deployed.stranger)
    assert (answer.status_code, answer.json()["detail"]) == (404, f"No container '{deployed.stranger}'")
    assert (await restart(admin, deployed.host(deployed.stranger))).status_code == 404
    assert deployed.started_at(deployed.stranger) == before


async def test_what_runs_in_no_container_is_a_conflict(runtime: Runtime, admin: Person) -> None:
    process = replace(runtime, worker_name="agents-0")
    async with beating(process, "agents"):
        await known(process)
        for name in ("agents-0", "postgres", "redis"):
            answer = await restart(admin, name)
            assert answer.status_code == 409
            assert "runs in no container that a function worker can restart" in answer.json()["detail"]
    assert (await restart(admin, "nothing")).status_code == 404


async def test_without_an_answer_nothing_is_said_to_be_missing(
    runtime: Runtime, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinas_server.admin.restart.TELL_SECONDS", 1.0)
    async with beating(replace(runtime, worker_name="functions-9"), "functions"):
        while (answer := await restart(admin, "sandbox-1")).status_code == 404:
            continue
    assert answer.status_code == 503
    assert "functions-9: it did not answer within 1 s" in answer.json()["detail"]


async def test_ordinary_users_may_not(user: Person) -> None:
    assert (await restart(user, "postgres")).status_code == 403

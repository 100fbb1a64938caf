"""The workers of the shared pool over HTTP: the API writes what is wanted, function workers bring it about."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sinas_server.functions.shared_workers import SharedWorkers, read_reports, share_of
from sinas_server.kernel.heartbeat import beating
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.functions.conftest import pool_of, working
from tests.people import Person

URL = "/api/v1/workers"


@asynccontextmanager
async def following(runtime: Runtime, name: str) -> AsyncIterator[Worker[Any]]:
    """A function worker that keeps its share."""
    async with working(runtime, name) as worker, beating(worker.runtime, "functions", worker.load):
        task = asyncio.create_task(SharedWorkers(worker.runtime, pool_of(worker)).follow())
        try:
            while name not in {report.worker for report in await read_reports(runtime)}:
                await asyncio.sleep(0.01)  # until then it is none of the function workers
            yield worker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_they_are_scaled_listed_and_reloaded(runtime: Runtime, admin: Person) -> None:
    http = admin.http
    async with following(runtime, "functions-1"):
        before = await http.get(f"{URL}/count")
        assert before.json() == {"count": 4, "running": 0}, "wanted, but nothing trusted has run yet"
        assert (await http.get(URL)).json() == []
        more = await http.post(f"{URL}/scale", json={"target_count": 3}, timeout=60)
        assert (more.status_code, more.json()) == (
            200,
            {"action": "scale_down", "previous_count": 4, "current_count": 3, "added": 0, "removed": 1},
        )
        assert (await http.get(f"{URL}/count")).json() == {"count": 3, "running": 3}
        listed = (await http.get(URL)).json()
        assert [set(worker) for worker in listed] == [
            {"id", "container_name", "status", "created_at", "executions"}
        ] * 3
        assert {worker["status"] for worker in listed} == {"idle"}
        assert all(worker["id"].startswith("functions-1:") for worker in listed)
        again = await http.post(f"{URL}/reload", timeout=60)
        assert again.json() == {"status": "completed", "total_workers": 3, "success": 3, "failed": 0}
        ids = {worker["id"] for worker in listed}
        while ids & {worker["id"] for worker in (await http.get(URL)).json()}:
            await asyncio.sleep(0.1)
        up = await http.post(f"{URL}/scale", json={"target_count": 4}, timeout=60)
        assert up.json() == {"action": "scale_up", "previous_count": 3, "current_count": 4, "added": 1, "removed": 0}
        same = await http.post(f"{URL}/scale", json={"target_count": 4}, timeout=60)
        assert same.json()["action"] == "none"
    assert (await http.get(f"{URL}/count")).json() == {"count": 4, "running": 0}, "none is left of a worker that stops"
    audited = (await http.get("/api/v1/audit", params={"target_kind": "workers"})).json()
    assert [entry["action"] for entry in audited] == ["scale", "scale", "reload", "scale"]


class TestOne:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"default_worker_count": 1})

    async def test_the_first_reload_of_an_installation_replaces_what_runs(
        self, runtime: Runtime, admin: Person
    ) -> None:
        """Nobody has asked for anything before: the worker there is has started with the first trusted function."""
        async with following(runtime, "functions-1") as worker:
            pool = pool_of(worker)
            while not any(report.share for report in await read_reports(runtime)):
                await asyncio.sleep(0.01)
            pool.warm()
            while not pool.workers():
                await asyncio.sleep(0.01)
            [old] = pool.workers()
            answer = await admin.http.post(f"{URL}/reload", timeout=60)
            assert answer.json() == {"status": "completed", "total_workers": 1, "success": 1, "failed": 0}
            assert [state.pid == old.pid for state in pool.workers() if not state.draining] == [False]


async def test_function_workers_share_what_is_wanted(runtime: Runtime, admin: Person) -> None:
    async with following(runtime, "functions-1") as first, following(runtime, "functions-2") as second:
        answer = await admin.http.post(f"{URL}/scale", json={"target_count": 3}, timeout=60)
        assert answer.status_code == 200
        while (len(pool_of(first).workers()), len(pool_of(second).workers())) != (2, 1):
            await asyncio.sleep(0.1)
        while (await admin.http.get(f"{URL}/count")).json()["running"] != 3:
            await asyncio.sleep(0.1)  # they report each second


async def test_without_function_workers_it_is_written_down(runtime: Runtime, admin: Person) -> None:
    assert (await admin.http.post(f"{URL}/scale", json={"target_count": 2})).json()["current_count"] == 2
    assert (await admin.http.post(f"{URL}/reload")).json()["total_workers"] == 0
    async with following(runtime, "functions-1") as worker:
        while len(pool_of(worker).workers()) != 2:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("target", [0, -1, 65, 1.5, "many", None])
async def test_what_cannot_be_wanted(admin: Person, target: object) -> None:
    answer = await admin.http.post(f"{URL}/scale", json={"target_count": target})
    assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (422, ["body", "target_count"])


@pytest.mark.parametrize("count", [0, 1, 4, 7])
@pytest.mark.parametrize("workers", [["a"], ["a", "b", "c"], ["c", "a", "b", "d", "e"]])
def test_shares_add_up(count: int, workers: list[str]) -> None:
    shares = [share_of(count, workers, name) for name in workers]
    assert sum(shares) == count
    assert max(shares) - min(shares) <= 1
    assert share_of(4, [], "alone") == 4

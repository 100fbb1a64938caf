"""The settings of workers, given to a real `sinas up` and seen in what it says of itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.live import running

VARIABLES = {
    "DEFAULT_WORKER_COUNT": "3",
    "QUEUE_WORKER_REPLICAS": "2",
    "QUEUE_FUNCTION_CONCURRENCY": "7",
    "QUEUE_AGENT_REPLICAS": "2",
    "QUEUE_AGENT_CONCURRENCY": "3",
    "POOL_MIN_SIZE": "1",
    "POOL_MAX_SIZE": "5",
    "POOL_MIN_IDLE": "1",
    "FUNCTION_TIMEOUT": "3",
}
TRUSTED = "import os\ndef handler(input_data, context):\n    return os.getpid()\n"
SLOW = "import time\ndef handler(input_data, context):\n    time.sleep(60)\n"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    root: Path = tmp_path_factory.mktemp("settings")
    with running(root / "data", **VARIABLES) as live, live.client() as client:
        yield client


def _call(http: httpx2.Client, name: str, code: str, **fields: object) -> dict[str, Any]:
    made = http.post(
        "/api/v1/functions", json={"name": name, "code": code, "input_schema": {}, "output_schema": {}, **fields}
    )
    assert made.status_code == 201, made.text
    found: dict[str, Any] = http.post(f"/functions/default/{name}/execute", json={"input": {}}).json()
    return found


def test_workers_and_their_slots(http: httpx2.Client) -> None:
    while len(workers := http.get("/api/v1/queue/workers").json()) < 5:
        continue
    slots = [(worker["queue"], worker["max_jobs"]) for worker in workers if worker["queue"] != "tasks"]
    assert sorted(slots) == [("agents", 3), ("agents", 3), ("functions", 7), ("functions", 7)]


def test_each_worker_has_a_pool_of_the_size(http: httpx2.Client) -> None:
    workers: list[dict[str, Any]] = []
    while [each["total"] for each in workers] != [1, 1]:  # before one is heard of, or its sandbox is replaced
        workers = http.get("/api/v1/containers/stats").json().get("workers", [])
    assert [each["max_size"] for each in workers] == [5, 5]


def test_shared_workers_start_with_the_first_trusted_function(http: httpx2.Client) -> None:
    assert http.get("/api/v1/workers/count").json() == {"count": 3, "running": 0}
    pid = _call(http, "trusted", TRUSTED, shared_pool=True)["result"]
    assert isinstance(pid, int)
    http.post("/api/v1/workers/scale", json={"target_count": 3})  # wakes those of the worker that ran nothing
    while (counted := http.get("/api/v1/workers/count").json())["running"] != 3:
        continue  # more for a moment, if a function worker has not heard of the other
    assert counted["count"] == 3


def test_the_time_limit(http: httpx2.Client) -> None:
    answer = _call(http, "slow", SLOW)
    assert (answer["status"], answer["error"]) == ("timeout", "Time limit exceeded: 3 seconds (FUNCTION_TIMEOUT)")

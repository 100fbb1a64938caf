"""The health of an installation, as an operator reads it."""

import asyncio
import dataclasses
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert

from sinas_server.admin import health
from sinas_server.admin.health import read_health
from sinas_server.backends.host import HostUse, read_host
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.heartbeat import beating, read_heartbeats
from sinas_server.kernel.runtime import Runtime
from tests.functions.conftest import Json
from tests.people import Person


async def look(admin: Person, query: str = "") -> Json:
    answer = await admin.http.get(f"/api/v1/system/health{query}")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def messages(found: Json, level: str) -> list[str]:
    return [warning["message"] for warning in found["warnings"] if warning["level"] == level]


async def test_an_installation_without_workers_is_critical(admin: Person) -> None:
    found = await look(admin)
    assert [service["name"] for service in found["services"]] == ["postgres", "redis"]
    assert all((one["status"], one["health"]) == ("running", "healthy") for one in found["services"])
    assert all(one["uptime_seconds"] >= 0 and one["version"] for one in found["services"])
    assert [message.partition(":")[0] for message in messages(found, "critical")] == [
        "No function worker is running",
        "No agent worker is running",
    ]
    assert any(message.startswith("No scheduler is running") for message in messages(found, "warning"))


async def test_processes_follow_the_servers_by_name_and_their_use_is_told_when_asked(
    runtime: Runtime, admin: Person
) -> None:
    names = ("functions", "agents", "tasks", "api")
    async with AsyncExitStack() as stack:
        for queue in names:
            await stack.enter_async_context(beating(dataclasses.replace(runtime, worker_name=f"{queue}-0"), queue))
        while len(await read_heartbeats(runtime)) < len(names):
            await asyncio.sleep(0.01)
        found, measured = await look(admin), await look(admin, "?include_stats=true")
    assert [one["name"] for one in found["services"]][2:] == ["agents-0", "api-0", "functions-0", "tasks-0"]
    assert not [one for one in found["services"] if one["memory"] is not None or one["cpu_percent"] is not None]
    assert not any("is running" in message for message in messages(found, "critical") + messages(found, "warning"))
    [redis, *processes] = measured["services"][1:]
    assert redis["memory"]["used_mb"] > 0
    assert all(one["memory"]["used_mb"] > 10 and one["cpu_percent"] >= 0 and one["host"] for one in processes)
    assert 0 < measured["host"]["memory_percent"] < 100
    assert measured["host"]["cpus"] >= 1


async def test_what_waits_for_long_and_what_failed_for_good_is_a_warning(runtime: Runtime, admin: Person) -> None:
    row = {"user_id": uuid4(), "user_email": "a@example.com", "function_id": uuid4(), "namespace": "n", "name": "f"}
    row |= {"version": 1, "trigger_type": "API", "input_data": {}, "timeout": 1, "timeout_from": "settings"}
    await runtime.database.rows(insert(ExecutionRow).values([row | {"max_retries": 0}] * (health.BACKLOG + 1)))
    found = await look(admin)
    assert f"{health.BACKLOG + 1} jobs of the queue functions wait for a worker" in messages(found, "warning")


async def test_without_redis_it_still_answers(runtime: Runtime) -> None:
    away = dataclasses.replace(runtime, redis=Redis.from_url("redis://127.0.0.1:1"))
    async with runtime.database.unit() as db:
        found = await read_health(away, db, stats=True)
    assert found.services[1].status == "down"
    assert [(one.level, one.message) for one in found.warnings][:2] == [
        ("critical", "redis does not answer"),
        ("warning", "Which workers are running is not known while Redis is away"),
    ]


@pytest.mark.parametrize(("used", "level"), [(95, "warning"), (80, "info"), (50, None)])
async def test_a_disk_that_fills_is_told_in_time(
    used: int, level: str | None, runtime: Runtime, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(directory: Path) -> HostUse:
        return HostUse(cpus=2, cpu_percent=1.0, memory_total=100, memory_used=1, disk_total=100, disk_used=used)

    monkeypatch.setattr(health, "read_host", read)
    found = await look(admin)
    assert [one["level"] for one in found["warnings"] if one["message"].startswith("The disk")] == (
        [level] if level else []
    )


async def test_the_host_is_read_where_the_data_will_be(tmp_path: Path) -> None:
    use = await read_host(tmp_path / "not" / "there" / "yet")
    assert 0 < use.disk_used < use.disk_total
    assert 0 <= use.cpu_percent <= 100


async def test_a_user_may_not_look(user: Person) -> None:
    assert (await user.http.get("/api/v1/system/health")).status_code == 403

"""What executions print, as it is printed."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy import select, update

from sinas_server.backends.stream import START, Position, StreamEvent
from sinas_server.backends.stream.redis import RedisStreams
from sinas_server.functions.live_log import AFTERWARDS_SECONDS, LiveLog, follow
from sinas_server.functions.tables import ExecutionRow
from sinas_server.kernel.job import Worker
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.functions.conftest import Declare, Json, queue, until
from tests.functions.test_executions import record
from tests.people import Person, make_person

PRINTS = """
import os, sys, time, urllib.error, urllib.request
def handler(input_data, context):
    print("first")
    print("warned", file=sys.stderr)
    while input_data.get("waits") and not may_go_on(context):
        time.sleep(0.05)
    print("last", end="")
    if input_data.get("fails"):
        raise ValueError("no")
def may_go_on(context):
    url = os.environ["SINAS_URL"] + "/api/v1/functions/default/go"
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + context["access_token"]})
    try:
        return urllib.request.urlopen(request).status == 200
    except urllib.error.HTTPError:
        return False
"""
"""With `waits` it goes on once there is a function `go`."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_retry_delay": 0.0, "queue_max_retries": 1})


def parsed(block: bytes) -> Json:
    """The data of an event, with its id; of a comment nothing."""
    lines = dict(line.split(": ", 1) for line in block.decode().splitlines() if ": " in line and line[0] != ":")
    return {"id": lines.get("id"), **json.loads(lines["data"])} if "data" in lines else {}


async def events(runtime: Runtime, execution_id: str, after: Position = START) -> AsyncIterator[Json]:
    async with asyncio.timeout(60):
        async for block in follow(runtime, UUID(execution_id), after):
            if event := parsed(block):
                yield event


def texts(found: list[Json]) -> dict[str, str]:
    return {
        name: "".join(event["output"] for event in found if event["type"] == "log" and event["stream"] == name)
        for name in ("stdout", "stderr")
    }


async def test_it_is_followed_as_it_is_printed(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("prints", PRINTS)
    execution_id = await queue(user, "prints", {"waits": True})
    found: list[Json] = []
    async for event in events(runtime, execution_id):
        if not found:
            assert (await user.http.get(f"/executions/{execution_id}")).json()["status"] == "RUNNING"
            so_far: Json = {}
            while so_far.get("stdout") != "first\n":  # its end may come a moment after its beginning
                so_far = (await user.http.get(f"/executions/{execution_id}/logs")).json()
            assert (so_far["complete"], so_far["attempt"]) == (False, 1)
            await declare("go")
        found.append(event)
    assert texts(found) == {"stdout": "first\nlast", "stderr": "warned\n"}
    assert (found[-1]["type"], found[-1]["status"], found[-1]["error"]) == ("done", "COMPLETED", None)
    logs = (await user.http.get(f"/executions/{execution_id}/logs")).json()
    assert (logs["stdout"], logs["stderr"], logs["complete"]) == ("first\nlast", "warned\n", True)
    again = [event async for event in events(runtime, execution_id)]
    assert texts(again) == texts(found)


async def test_a_late_reader_gets_all_and_a_returning_one_the_rest(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("prints", PRINTS)
    execution_id = await queue(user, "prints", {"waits": True})
    first = await anext(events(runtime, execution_id))

    async def returned() -> list[Json]:
        return [event async for event in events(runtime, execution_id, Position.parse(first["id"]))]

    returning = asyncio.create_task(returned())
    await declare("go")
    rest = await returning
    assert first["output"] not in [event.get("output") for event in rest]
    assert texts([first, *rest]) == {"stdout": "first\nlast", "stderr": "warned\n"}


async def test_redis_forgets_in_the_middle(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("prints", PRINTS)
    execution_id = await queue(user, "prints", {"waits": True})
    found: list[Json] = []
    async for event in events(runtime, execution_id):
        if not found:
            await runtime.redis.flushdb()
            await declare("go")
        found.append(event)
    assert texts(found) == {"stdout": "first\nlast", "stderr": "warned\n"}


async def test_what_is_published_anew_in_other_pieces_is_told_once(runtime: Runtime, user: Person) -> None:
    """By who watched before Redis forgot, and by who comes back."""
    execution_id = await record(runtime, user, status="RUNNING", attempt=1, stdout="abc")
    [row] = await runtime.database.rows(select(*ExecutionRow.__table__.columns))
    live_log = LiveLog(runtime, ExecutionRow.loaded(row._asdict()))
    live_log.on_output("stdout", "a")
    found: list[Json] = []
    async for event in events(runtime, execution_id):
        if not found:
            live_log.on_output("stdout", "bc")
            await runtime.redis.flushdb()
        elif event["type"] == "log":
            back = await anext(events(runtime, execution_id, Position.parse(found[0]["id"])))
            await live_log.close()
            await runtime.database.rows(update(ExecutionRow).values(status="COMPLETED"))
        found.append(event)
    assert texts(found) == {"stdout": "abc", "stderr": ""}
    assert back["output"] == "bc"


async def test_another_attempt_begins_anew(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("prints", PRINTS)
    execution_id = await queue(user, "prints", {"waits": True, "fails": True})
    found: list[Json] = []
    async for event in events(runtime, execution_id):
        if not found:
            await declare("go")
        found.append(event)
    [restart] = [index for index, event in enumerate(found) if event["type"] == "restart"]
    assert found[restart]["attempt"] == 2
    assert texts(found[restart:]) == {"stdout": "first\nlast", "stderr": "warned\n"}
    assert (found[-1]["status"], found[-1]["error"]) == ("FAILED", "ValueError: no")


async def test_nothing_is_published_that_nobody_watches(
    runtime: Runtime, user: Person, declare: Declare, worker: Worker[Any]
) -> None:
    await declare("prints", PRINTS)
    await until(user, await queue(user, "prints"), "COMPLETED")
    assert await runtime.redis.keys("*execution-log*") == []


class Slow(RedisStreams):
    """Its answers take as long as somebody waits for them."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.made = asyncio.Event()

    async def create(self, channel: str, events: Sequence[StreamEvent] = (), *, tell: Sequence[str] = ()) -> None:
        await super().create(channel, events, tell=tell)
        self.made.set()
        await asyncio.Event().wait()


async def test_the_end_comes_while_it_is_published_for_the_first_time(runtime: Runtime, user: Person) -> None:
    """Who watches is told so, and Redis need not keep it for a week."""
    execution_id = await record(runtime, user)
    [found] = await runtime.database.rows(select(*ExecutionRow.__table__.columns))
    slow = Slow(runtime.redis)
    live_log = LiveLog(dataclasses.replace(runtime, streams=slow), ExecutionRow.loaded(found._asdict()))
    live_log.on_output("stdout", "first")
    async with asyncio.timeout(60), runtime.signals.listen(f"execution-log:{execution_id}") as more:
        while not slow.made.is_set():
            await runtime.signals.signal(f"execution-watch:{execution_id}")
            await asyncio.sleep(0.01)
        await live_log.close()
        assert await more.wait(60)
    assert 0 < await runtime.redis.ttl(f"sinas:stream:execution-log:{execution_id}") <= AFTERWARDS_SECONDS


async def test_what_is_printed_after_the_end_is_nobodys(runtime: Runtime, user: Person) -> None:
    """By a thread of the shared pool that does not stop at once: nothing waits for watchers then, for ever."""
    await record(runtime, user)
    [found] = await runtime.database.rows(select(*ExecutionRow.__table__.columns))
    live_log = LiveLog(runtime, ExecutionRow.loaded(found._asdict()))
    before = asyncio.all_tasks()
    await live_log.close()
    live_log.on_output("stdout", "late")
    assert asyncio.all_tasks() == before


async def test_the_end_of_one_that_prints_nothing(runtime: Runtime, user: Person, declare: Declare) -> None:
    await declare("f")
    execution_id = await queue(user, "f")
    reading = asyncio.ensure_future(anext(events(runtime, execution_id)))
    await asyncio.sleep(0.1)
    await user.http.post(f"/executions/{execution_id}/cancel")
    assert (await reading)["status"] == "CANCELLED"


async def test_a_position_of_what_is_gone_is_begun_anew(runtime: Runtime, user: Person) -> None:
    execution_id = await record(runtime, user, stdout="abc", stderr="x", attempt=2)
    found = [event async for event in events(runtime, execution_id, Position(2, 2))]
    assert texts(found) == {"stdout": "abc", "stderr": "x"}
    deleted = [event async for event in events(runtime, str(uuid4()))]
    assert [event["type"] for event in deleted] == ["error"]


async def test_over_http(runtime: Runtime, app: FastAPI, user: Person, client: httpx2.AsyncClient) -> None:
    execution_id = await record(runtime, user, stdout="abc", attempt=1)
    path = f"/executions/{execution_id}/logs/stream"
    answer = await user.http.get(path)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [parsed(block.encode())["type"] for block in answer.text.split("\n\n") if block] == ["log", "done"]
    assert (await user.http.get(path, headers={"Last-Event-ID": "x"})).status_code == 422
    assert (await client.get(path)).status_code == 401
    other = await make_person(runtime, app, ["Users"])
    async with other.http:
        for hidden in (path, path.removesuffix("/stream"), f"/executions/{execution_id}/tree"):
            assert (await other.http.get(hidden)).status_code == 404


async def test_a_running_one_without_a_worker_tells_what_is_stored(runtime: Runtime, user: Person) -> None:
    execution_id = await record(runtime, user, status="RUNNING")
    logs = (await user.http.get(f"/executions/{execution_id}/logs")).json()
    assert (logs["stdout"], logs["complete"]) == ("", False)
    await runtime.database.rows(update(ExecutionRow).values(status="COMPLETED", stdout="x"))
    assert (await user.http.get(f"/executions/{execution_id}/logs")).json()["stdout"] == "x"

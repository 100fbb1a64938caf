"""Redis is away for seconds while calls come in, and workers die again and again under a full queue."""

import asyncio

import httpx2
import pytest

from tests.faults.harness import Json, Stack, eventually
from tests.faults.invariants import Invariants
from tests.faults.reader import Reader

QUEUED = 500
AWAY_SECONDS = 3.0


async def execute(client: httpx2.AsyncClient, number: int) -> Json:
    answer = await client.post("/functions/t/echo/execute", json={"input": {"number": number}})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def queue(client: httpx2.AsyncClient, number: int) -> None:
    answer = await client.post("/functions/t/echo/execute/async", json={"input": {"number": number}})
    assert answer.status_code == 202, answer.text


async def turn(stack: Stack) -> tuple[Json, Reader]:
    chat = await stack.ask("POST", "/agents/t/agent/chats", {})
    reader = Reader(stack, chat["id"])
    return await reader.say("go"), reader


async def test_calls_come_in_while_redis_is_away(stack: Stack, invariants: Invariants) -> None:
    held = stack.root / "no-valkey"
    held.touch()
    try:
        stack.kill("valkey")
        async with stack.client() as client, asyncio.timeout(60):
            began = asyncio.get_running_loop().time()
            turns = [asyncio.create_task(turn(stack)) for _ in range(2)]
            queued = asyncio.gather(*(queue(client, n) for n in range(5)))
            answers = await asyncio.gather(*(execute(client, n) for n in range(5)))
            assert [answer["result"] for answer in answers] == [{"number": n} for n in range(5)]  # without it
            await queued
            await asyncio.sleep(max(0.0, began + AWAY_SECONDS - asyncio.get_running_loop().time()))
    finally:
        held.unlink()
    for chat, reader in await asyncio.gather(*turns):
        invariants.answered(chat, reader)
        invariants.called(chat)
    await invariants.ends()
    assert len(invariants.executions()) == 14


@pytest.mark.parametrize("server", ["valkey", "postgres"])
async def test_calls_come_in_while_a_server_hangs(stack: Stack, invariants: Invariants, server: str) -> None:
    async with stack.client() as client, asyncio.timeout(60):
        with stack.hanging(server):
            calls = [asyncio.create_task(execute(client, n)) for n in range(3)]
            going = asyncio.create_task(turn(stack))
            await asyncio.sleep(AWAY_SECONDS)
        assert [answer["result"] for answer in await asyncio.gather(*calls)] == [{"number": n} for n in range(3)]
        chat, reader = await going
    invariants.answered(chat, reader)
    await invariants.ends()
    invariants.called(chat)


async def test_a_database_that_was_away_while_nothing_happened_is_not_noticed(
    stack: Stack, invariants: Invariants
) -> None:
    async with stack.client() as client:
        await asyncio.gather(*(execute(client, n) for n in range(8)))
        stack.kill("postgres")

        async def answers() -> bool:
            return bool(stack.rows("SELECT 1"))

        await eventually(answers, "the database does not come back")
        for path in ("/functions/t/echo/execute/async", "/agents/t/agent/chats"):
            answer = await client.post(path, json={})
            assert answer.is_success, answer.text
    await invariants.ends()


async def test_a_full_queue_outlives_its_workers(stack: Stack, invariants: Invariants) -> None:
    async with stack.client() as client:
        room = asyncio.Semaphore(16)

        async def put(number: int) -> None:
            async with room:
                await queue(client, number)

        putting = asyncio.gather(*(put(number) for number in range(QUEUED)))
        for share in (0.2, 0.4, 0.6):

            async def is_done(least: float = share * QUEUED) -> bool:
                return invariants.completed() >= least

            await eventually(is_done, "the queue does not move")
            stack.kill("functions")
        await putting
    await invariants.ends()
    rows = invariants.executions()
    assert sorted(row["output_data"]["number"] for row in rows) == list(range(QUEUED))
    assert {row["status"] for row in rows} == {"COMPLETED"}

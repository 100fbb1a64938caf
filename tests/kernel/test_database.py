"""What cancellation leaves behind in the pool of connections: nothing; and rows that no session has read."""

import asyncio
import gc
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from sqlalchemy import text

from sinas_server.backends.db import open_engine
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.unit import Database

ONE = text("SELECT 1")


async def test_a_statement_that_is_canceled_while_its_connection_is_new_loses_none(
    runtime: Runtime, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, begun = psycopg.AsyncConnection.set_autocommit, asyncio.Event()

    async def slowly(self: psycopg.AsyncConnection[Any], value: bool) -> None:
        begun.set()
        await asyncio.sleep(0.05)
        await usual(self, value)

    engine = open_engine(database_url, pool_size=1, overflow=0)
    database = Database(engine, runtime.database.sealer, runtime.settings)
    await database.rows(ONE)
    await engine.dispose()
    monkeypatch.setattr(psycopg.AsyncConnection, "set_autocommit", slowly)
    asking = asyncio.create_task(database.rows(ONE))
    await begun.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    gc.collect()
    assert len(await database.rows(ONE)) == 1, "the only connection is free again"
    await database.close()
    gc.collect()


async def test_an_error_that_nobody_waits_for_any_more_is_none(runtime: Runtime, database_url: str) -> None:
    heard: list[object] = []
    loop = asyncio.get_running_loop()
    usual = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    database = Database(open_engine(database_url), runtime.database.sealer, runtime.settings)
    waiting = text("SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    async with runtime.database.unit() as db:
        await db.execute(text("SELECT pg_advisory_xact_lock(7)"))
        asking = asyncio.create_task(database.rows(text("SELECT pg_advisory_xact_lock(7), 1 / (0 * random())")))
        while not await runtime.database.rows(waiting):
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
    await database.close()  # what was asked comes to its end
    assert asking.cancelled()
    gc.collect()
    loop.set_exception_handler(usual)
    assert heard == []


def test_a_row_can_be_read_before_anything_else_has_used_its_table() -> None:
    """As a loop of a process may do that has just started; here all tables are in use already."""
    code = "from sinas_server.kernel.tables import TaskRow; print(TaskRow.loaded({'name': 'first'}).name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "first\n", done.stderr

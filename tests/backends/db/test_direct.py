"""Reading straight through libpq: many at once, and what happens when the server or a pooler misbehaves."""

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from select import select as select_ready

import psycopg
import pytest
import uvloop
from sqlalchemy import Integer, Text, bindparam, func, literal, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from sinas_server.backends.db import is_lost, link, open_engine
from sinas_server.backends.db.direct import CONNECTIONS, DirectReader

PID = select(func.pg_backend_pid().label("pid"))
SUM = select((bindparam("a", type_=Integer) + literal(2)).label("sum"), func.json_build_object("k", 1).label("json"))
SLEEP = select(func.pg_sleep(30))
BAD = text("SELECT nothing_like_this")


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[DirectReader]:
    engine = open_engine(database_url)
    made = DirectReader(engine)
    yield made
    await made.close(2)
    await engine.dispose()


async def test_rows_are_named_and_typed(reader: DirectReader) -> None:
    for a in (1, 40):
        row = (await reader.fetch(SUM, {"a": a}))[0]
        assert (row.sum, row.json) == (a + 2, {"k": 1})


async def test_many_at_once_share_few_connections(reader: DirectReader) -> None:
    rows = await asyncio.gather(*(reader.fetch(PID, {}) for _ in range(50)))
    assert 1 <= len({row[0].pid for row in rows}) <= CONNECTIONS


async def test_a_bad_statement_is_an_error_of_sqlalchemy_and_no_more(reader: DirectReader) -> None:
    with pytest.raises(DBAPIError) as raised:
        await reader.fetch(BAD, {})
    assert not is_lost(raised.value)
    assert (await reader.fetch(SUM, {"a": 1}))[0].sum == 3


async def test_connections_cut_by_the_server_are_told_and_replaced(reader: DirectReader) -> None:
    await asyncio.gather(*(reader.fetch(PID, {}) for _ in range(CONNECTIONS)))
    cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sinas'")
    for _ in range(2):  # the statement ends its own connection as well
        with pytest.raises(DBAPIError) as raised:
            await reader.fetch(cut, {})
        assert is_lost(raised.value)
        assert (await reader.fetch(SUM, {"a": 1}))[0].sum == 3, "one lost connection means all are"


async def test_a_server_that_is_away_is_lost(reader: DirectReader) -> None:
    engine = open_engine("postgresql://nobody@127.0.0.1:1/none")
    nowhere = DirectReader(engine)
    with pytest.raises(DBAPIError) as raised:
        await nowhere.fetch(SUM, {"a": 1})
    assert is_lost(raised.value)
    await engine.dispose()


async def test_a_canceled_read_leaves_no_answer_for_the_next(reader: DirectReader) -> None:
    await reader.fetch(SUM, {"a": 1})
    sleeping = asyncio.create_task(reader.fetch(SLEEP, {}))
    await asyncio.sleep(0.05)
    sleeping.cancel()
    with suppress(asyncio.CancelledError):
        await sleeping
    assert sleeping.cancelled()
    assert (await reader.fetch(SUM, {"a": 5}))[0].sum == 7


async def test_closing_waits_for_what_is_in_use_but_not_for_ever(reader: DirectReader) -> None:
    short = asyncio.create_task(reader.fetch(select(func.pg_sleep(0.3)), {}))
    await asyncio.sleep(0.05)
    await reader.close(10)
    assert short.done(), "nothing is left to be closed later, when perhaps no event loop runs any more"
    long = asyncio.create_task(reader.fetch(SLEEP, {}))
    await asyncio.sleep(0.05)
    await reader.close(0.1)
    assert not long.done()
    long.cancel()
    await asyncio.wait([long])


async def test_a_pooler_that_forgets_prepared_statements_costs_only_the_preparing(reader: DirectReader) -> None:
    await reader.fetch(SUM, {"a": 1})
    forget = text("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
    await reader._idle[0].run(str(forget), [], prepare=False)
    assert (await reader.fetch(SUM, {"a": 1}))[0].sum == 3
    assert reader._prepare is False
    assert (await reader.fetch(SUM, {"a": 2}))[0].sum == 4


async def test_a_connection_that_breaks_as_a_statement_is_sent_is_not_heard_any_more(reader: DirectReader) -> None:
    """Libpq closes its socket then; another one with that number must not lose those who wait for it."""
    await reader.fetch(SUM, {"a": 1})
    [idle] = reader._idle
    with socket.socket(fileno=os.dup(idle._fd)) as same:
        same.shutdown(socket.SHUT_RDWR)
    with pytest.raises(psycopg.OperationalError):
        await idle.run("SELECT $1::text", ["more than is kept for later" * 1000], prepare=False)
    assert idle.is_broken


async def test_what_is_larger_than_the_socket_takes_is_sent_whole(reader: DirectReader) -> None:
    large = "x" * 30_000_000
    size = select(
        func.length(bindparam("large", type_=Text)).label("size"), bindparam("large", type_=Text).label("all")
    )
    [row] = await reader.fetch(size, {"large": large})
    assert (row.size, row.all == large) == (30_000_000, True)


async def test_what_cannot_be_sent_at_all_spoils_nothing(reader: DirectReader) -> None:
    same = select(bindparam("given", type_=Text).label("given"))
    await reader.fetch(same, {"given": "a"})
    [kept] = reader._idle
    with pytest.raises(DBAPIError) as raised:
        await reader.fetch(same, {"given": "a\x00b"})
    assert not is_lost(raised.value)
    assert reader._idle == [kept]
    assert (await reader.fetch(same, {"given": "c"}))[0].given == "c"


async def test_a_statement_that_a_pooler_brings_along_is_taken_as_it_is(reader: DirectReader) -> None:
    await reader.fetch(SUM, {"a": 1})
    reader._idle[0]._prepared.clear()  # as for another client of the pooler's connection
    assert (await reader.fetch(SUM, {"a": 1}))[0].sum == 3
    assert reader._prepare is True


@pytest.mark.parametrize(("through_pooler", "mode"), [(False, "force_generic_plan"), (True, "auto")])
async def test_plans_are_kept_except_on_a_connection_of_a_pooler(
    reader: DirectReader, monkeypatch: pytest.MonkeyPatch, through_pooler: bool, mode: str
) -> None:
    if through_pooler:  # it makes the process ids up that it tells its clients
        monkeypatch.setattr(link, "SETTLE", link.SETTLE.replace("$1", "$1 + 1"))
    [row] = await reader.fetch(text("SELECT current_setting('plan_cache_mode') AS mode"), {})
    assert row.mode == mode


FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
FATAL = b"E" + struct.pack("!i", 4 + len(FIELDS)) + FIELDS
"""What a server says as it ends a connection."""


class Relay(threading.Thread):
    """Between a client and the server; when told to, it ends the connection before it reads what was sent."""

    def __init__(self, directory: Path, server: str) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen()
        self.dies = threading.Event()

    def run(self) -> None:
        for _ in range(2):
            client, _ = self._listener.accept()
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(self._server)
                while self._passed_on(client, server):
                    pass
            self.dies.clear()  # it is closed
        self._listener.close()

    def _passed_on(self, client: socket.socket, server: socket.socket) -> bool:
        for ready in select_ready([client, server], [], [])[0]:
            if ready is client and self.dies.is_set():
                client.sendall(FATAL)
                return False
            data = ready.recv(1 << 16)
            (server if ready is client else client).sendall(data)
            if not data:
                return False
        return True


def test_a_server_that_dies_before_it_reads_a_statement_is_noticed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says then that the connection was reset, and uvloop tells only once that there is more to read."""
    url = make_url(database_url)
    relay = Relay(tmp_path, f"{url.query['host']}/.s.PGSQL.5432")
    relay.start()
    usual = link.Link._write

    def write(sending: link.Link) -> None:
        usual(sending)
        while relay.dies.is_set():  # until all that is to come has come
            time.sleep(0.01)

    monkeypatch.setattr(link.Link, "_write", write)

    async def ask() -> None:
        engine = open_engine(url.set(query={"host": str(tmp_path)}).render_as_string(hide_password=False))
        reader = DirectReader(engine)
        assert (await reader.fetch(SUM, {"a": 1}))[0].sum == 3
        relay.dies.set()
        async with asyncio.timeout(10):
            with pytest.raises(DBAPIError) as raised:
                await reader.fetch(SUM, {"a": 1})
        assert is_lost(raised.value)
        assert (await reader.fetch(SUM, {"a": 1}))[0].sum == 3
        await reader.close(2)
        await engine.dispose()

    uvloop.run(ask())
    relay.join(10)

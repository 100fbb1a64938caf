"""One connection for constant statements, spoken to through libpq as psycopg offers it, at 0.4 of psycopg's own cost.

What `AsyncConnection.execute` does beyond that is not needed here: cursors, transactions, and preparing by counting.
"""

import asyncio
import hashlib
from collections import namedtuple
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import orjson
import psycopg
from psycopg import errors
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.types.json import set_json_loads
from sqlalchemy.ext.asyncio import AsyncEngine

from sinas_server.backends.db import is_abandoned

Connection: TypeAlias = psycopg.AsyncConnection[Any]
FINE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
LOOK_SECONDS = 0.1
"""How often who waits for an answer looks whether the server is still there."""
SETTLE = "SELECT set_config('plan_cache_mode', 'force_generic_plan', false) WHERE pg_backend_pid() = $1"
"""A constant statement has one plan: the server would make one anew each time where it takes the parameters to matter.
Not through PgBouncer, where others would find the setting on their connection."""


class Link:
    """Runs one statement at a time, in autocommit."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pq = connection.pgconn
        self._fd = self._pq.socket
        """Libpq forgets it when the server closes the connection."""
        self._loop = asyncio.get_running_loop()
        self._statements: dict[str, _Statement] = {}
        self._prepared: set[bytes] = set()
        self._results: list[PGresult] = []
        self._answer: asyncio.Future[list[PGresult]] | None = None
        self._reads = True
        self._looking: asyncio.TimerHandle
        self._loop.add_reader(self._fd, self._readable)

    @classmethod
    async def open(cls, engine: AsyncEngine) -> "Link":
        """Connect to where the engine connects. Raises `psycopg.Error`."""
        positional, named = engine.dialect.create_connect_args(engine.url)
        connection = await psycopg.AsyncConnection.connect(
            *positional, **named, autocommit=True, connect_timeout=10, application_name="sinas"
        )
        set_json_loads(orjson.loads, connection)
        link = cls(connection)
        try:
            await link.run(SETTLE, [connection.pgconn.backend_pid], prepare=False)
        except BaseException:
            await link.close()
            raise
        return link

    @property
    def is_broken(self) -> bool:
        """Whether the server is known to have left it."""
        return not self._reads

    @property
    def is_abandoned(self) -> bool:
        """Whether the server has left it, found out now."""
        return self.is_broken or is_abandoned(self._connection)

    async def run(self, sql: str, values: Sequence[object], *, prepare: bool) -> Sequence[Any]:
        """The rows as named tuples. Raises `psycopg.Error`; canceled, the link is of no more use."""
        known = self._statements.get(sql)
        if known is None:
            known = self._statements[sql] = _Statement(self._connection)
        transformer = known.transformer
        parameters = transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))
        types, formats = transformer.types or (), transformer.formats
        try:
            if prepare:
                name = known.name(sql, types)
                if name not in self._prepared:
                    await self._prepare(name, sql, types)
                self._pq.send_query_prepared(name, parameters, param_formats=formats)
            else:
                self._pq.send_query_params(sql.encode(), parameters, param_types=types, param_formats=formats)
            return known.rows(await self._ask())
        except psycopg.Error:
            if self._pq.status == ConnStatus.BAD:  # found as it was sent: libpq has closed the socket
                self._stop()  # now, before another one gets its number
            raise

    async def _prepare(self, name: bytes, sql: str, types: Sequence[int]) -> None:
        self._pq.send_prepare(name, sql.encode(), param_types=types)
        # Behind a PgBouncer another connection may have brought it along: by its name it is this very statement.
        with suppress(errors.DuplicatePreparedStatement):
            await self._ask()
        self._prepared.add(name)

    async def _ask(self) -> PGresult:
        """The result of what was sent."""
        self._answer = self._loop.create_future()
        self._looking = self._loop.call_later(LOOK_SECONDS, self._look)
        try:
            if not self._reads:
                raise psycopg.OperationalError("the server closed the connection")
            self._write()
            results = await self._answer
        finally:
            self._answer = None
            self._looking.cancel()
        for result in results:
            if result.status not in FINE:
                raise errors.error_from_result(result)
        return results[-1]

    def _write(self) -> None:
        """Send what is left; a large statement leaves something when the server reads more slowly than we write."""
        try:
            is_left = bool(self._pq.flush())
        except psycopg.Error as error:
            self._fail(error)
            return
        if is_left:
            self._loop.add_writer(self._fd, self._write)
        else:
            self._loop.remove_writer(self._fd)

    def _readable(self) -> None:
        try:
            self._pq.consume_input()
            while not self._pq.is_busy():
                result = self._pq.get_result()
                if result is None:
                    break
                self._results.append(result)
            else:
                return
        except psycopg.Error as error:
            self._fail(error)
            return
        if self._results and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._results)
        self._results = []

    def _look(self) -> None:
        """See that the server is gone: of a connection that was reset uvloop tells once, also if more is to be read."""
        self._readable()
        if self._reads:
            self._looking = self._loop.call_later(LOOK_SECONDS, self._look)

    def _fail(self, error: psycopg.Error) -> None:
        """The server is gone."""
        self._stop()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _stop(self) -> None:
        """Hear no more of the socket, which is about to be closed."""
        if self._reads:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._reads = False

    async def close(self) -> None:
        """Close the connection."""
        self._stop()
        await self._connection.close()


class _Statement:
    """How a statement's parameters and results are translated."""

    def __init__(self, connection: Connection) -> None:
        self.transformer = Transformer(connection)
        self._names: dict[tuple[int, ...], bytes] = {}
        self._make: Callable[[Sequence[Any]], Any] | None = None

    def name(self, sql: str, types: tuple[int, ...]) -> bytes:
        """What the server calls it: the same for the same statement with parameters of the same types."""
        name = self._names.get(types)
        if name is None:
            name = b"sinas_" + hashlib.blake2b(f"{types}{sql}".encode(), digest_size=12).hexdigest().encode()
            self._names[types] = name
        return name

    def rows(self, result: PGresult) -> Sequence[Any]:
        """The rows of a result."""
        if not result.ntuples:
            return []
        if self._make is None:
            self.transformer.set_pgresult(result)
            columns = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
            row: Any = namedtuple("Row", columns, rename=True)  # type: ignore[misc]  # they come from the server
            self._make = row._make
        else:  # its columns are always the same
            self.transformer.set_pgresult(result, set_loaders=False)
        return self.transformer.load_rows(0, result.ntuples, self._make)

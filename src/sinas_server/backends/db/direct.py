"""The hottest reads: constant statements straight through psycopg, prepared, at a third of SQLAlchemy's cost."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import lru_cache
from typing import Any, TypeAlias

import orjson
import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import set_json_loads
from sqlalchemy import ColumnElement, Executable, Text, literal_column
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.compiler import SQLCompiler

from sinas_server.backends.db import is_abandoned

Connection: TypeAlias = psycopg.AsyncConnection[Any]
CONNECTIONS = 8
"""Most connections of a process, beside those of its engine."""
CONSTANTS = 256
"""More statements than a process has."""


def constant(word: str) -> ColumnElement[str]:
    """A word in the text of a statement: a plan for any word could not use an index of the rows with this one."""
    return literal_column(f"'{word}'", Text)


class DirectReader:
    """Runs single statements in autocommit on connections of its own; connects when first asked."""

    def __init__(self, engine: AsyncEngine) -> None:
        """`engine` says where the server is and how SQL is written for it."""
        self._engine = engine
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._prepare = True
        self._ended = False

    async def fetch(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Any]:
        """The rows as named tuples. `statement` must be a constant: it is compiled once and kept.

        Raises SQLAlchemy's errors, so that callers need not know of psycopg.
        """
        sql, names, defaults = _compiled(statement)
        given = {**defaults, **parameters}
        values = [given[name] for name in names]
        try:
            return await self._run(sql, values)
        except (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement):
            # Behind a PgBouncer in transaction mode that does not track prepared statements.
            self._prepare = False
            return await self._run(sql, values)
        except psycopg.Error as error:
            lost = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
            known = DBAPIError.instance(
                sql, None, error, psycopg.Error, hide_parameters=True, connection_invalidated=lost
            )
            raise known from error

    async def _run(self, sql: str, values: Sequence[Any]) -> Sequence[Any]:
        async with self._slots:
            connection = await self._take()
            try:
                cursor = await connection.execute(sql, values, prepare=self._prepare)
                rows = await cursor.fetchall()
            except BaseException:  # canceled in the middle, too: what such a connection says next is not ours
                if connection.broken:  # the server went away, and the other connections with it
                    await self._close_idle()
                await connection.close()
                raise
            if self._ended:
                await connection.close()
            else:
                self._idle.append(connection)
        return rows

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not is_abandoned(connection):
                return connection
            await connection.close()
        return await self._connect()

    async def close(self, seconds: float) -> None:
        """Close every connection: those in use when they are not, which is waited for that long."""
        self._ended = True
        await self._close_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), AsyncExitStack() as slots:
                for _ in range(CONNECTIONS):
                    await slots.enter_async_context(self._slots)

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()

    async def _connect(self) -> Connection:
        positional, named = self._engine.dialect.create_connect_args(self._engine.url)
        connection = await psycopg.AsyncConnection.connect(
            *positional,
            **named,
            autocommit=True,
            connect_timeout=10,
            application_name="sinas",
            row_factory=namedtuple_row,
            cursor_factory=psycopg.AsyncRawCursor,
        )
        set_json_loads(orjson.loads, connection)
        return connection


@lru_cache(CONSTANTS)
def _compiled(statement: Executable) -> tuple[str, Sequence[str], Mapping[str, Any]]:
    """SQL, the names of its parameters in their order, and the values that the statement has for them."""
    # Numbered parameters are the server's own form: psycopg need not read through the statement each time.
    dialect = PGDialectAsync_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # SQLAlchemy's
    compiled: SQLCompiler = statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # of ClauseElement
    defaults = {name: value for name, value in compiled.params.items() if value is not None}
    return str(compiled), compiled.positiontup or (), defaults

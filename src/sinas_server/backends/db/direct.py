"""The hottest reads: constant statements straight through libpq, prepared, at a tenth of SQLAlchemy's cost."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import lru_cache
from typing import Any

import psycopg
from sqlalchemy import ColumnElement, Executable, Text, literal_column
from sqlalchemy.dialects.postgresql.psycopg import PGDialectAsync_psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql.compiler import SQLCompiler

from sinas_server.backends.db.link import Link

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
        self._idle: list[Link] = []
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
            link = await self._take()
            try:
                rows = await link.run(sql, values, prepare=self._prepare)
            except psycopg.Error:
                if link.is_broken:  # the server went away, and from the other connections as well
                    await self._close_idle()
                await self._give_back(link)
                raise
            except BaseException:  # canceled in the middle: what such a connection says next is not ours
                await link.close()
                raise
            await self._give_back(link)
        return rows

    async def _give_back(self, link: Link) -> None:
        if self._ended or link.is_broken:
            await link.close()
        else:
            self._idle.append(link)

    async def _take(self) -> Link:
        while self._idle:
            link = self._idle.pop()
            if not link.is_abandoned:
                return link
            await link.close()
        return await Link.open(self._engine)

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
        for link in idle:
            await link.close()


@lru_cache(CONSTANTS)
def _compiled(statement: Executable) -> tuple[str, Sequence[str], Mapping[str, Any]]:
    """SQL, the names of its parameters in their order, and the values that the statement has for them."""
    # Numbered parameters are the server's own form: psycopg need not read through the statement each time.
    dialect = PGDialectAsync_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # SQLAlchemy's
    compiled: SQLCompiler = statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # of ClauseElement
    defaults = {name: value for name, value in compiled.params.items() if value is not None}
    return str(compiled), compiled.positiontup or (), defaults

"""The platform's own PostgreSQL: opening engines and telling a lost server from a bad statement."""

import select
from typing import TypeVar

import psycopg
from sqlalchemy import event
from sqlalchemy.engine import AdaptedConnection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

R = TypeVar("R")


PREPARE_AFTER = 3
"""How often a connection sees a statement before it has the server keep it."""


def open_engine(url: str, *, pool_size: int = 10, overflow: int = 10, prepare: bool = False) -> AsyncEngine:
    """An engine for `postgresql://` in any spelling; safe behind PgBouncer unless `prepare`: no session state.

    `prepare`: the server keeps statements that come again, which spares it a third of its work.
    """
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    engine = create_async_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=overflow,
        pool_timeout=30,
        pool_reset_on_return="rollback",
        hide_parameters=True,  # errors are logged, and values are nobody's business there
        connect_args={
            "prepare_threshold": PREPARE_AFTER if prepare else None,
            "connect_timeout": 10,
            "application_name": "sinas",
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_abandoned)
    return engine


def _refuse_abandoned(connection: AdaptedConnection, *_: object) -> None:
    """Have the pool connect anew after a restart of the server, instead of a request finding out."""
    if is_abandoned(connection.driver_connection):
        raise InvalidatePoolError


def is_abandoned(connection: psycopg.AsyncConnection[R]) -> bool:
    """Whether the server has left an idle connection: then there is something to read, and never otherwise.

    Costs no round trip. A server that dies meanwhile is found out by the statement.
    """
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def is_lost(error: BaseException) -> bool:
    """Whether the server went away (restart, crash, network) rather than refused the statement."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (
            isinstance(error, (OperationalError, InterfaceError))
            and getattr(error.orig, "sqlstate", None) in (None, "57P01", "57P02", "57P03", "08000", "08003", "08006")
        )
    return isinstance(error, ConnectionError)


def is_busy(error: BaseException) -> bool:
    """Whether the same request may well succeed in a moment: no connection is free, or two transactions collided."""
    return isinstance(error, PoolTimeoutError) or (
        isinstance(error, DBAPIError)
        and getattr(error.orig, "sqlstate", None) in ("53300", "40001", "40P01", "55P03", "57014")
    )


def is_orphan(error: BaseException) -> bool:
    """Whether a row was refused because what it belongs to is gone."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == "23503"


def is_passing(error: BaseException) -> bool:
    """Whether what failed can be done a little later: the server went away, or is busy."""
    return is_lost(error) or is_busy(error)

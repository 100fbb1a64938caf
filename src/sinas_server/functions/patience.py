"""Doing what must be done although the database is away or busy for a while."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

from sinas_server.backends.db import is_passing

log = structlog.get_logger()
T = TypeVar("T")


async def patiently(step: Callable[[], Awaitable[T]]) -> T:
    """A step of ours, repeated while the database is away or busy: an execution must not be lost by that.

    It ends at the latest when the worker finds that the row is no longer its own, and cancels.
    """
    pause = 0.1
    while True:
        try:
            return await step()
        except SQLAlchemyError as error:
            if not is_passing(error):
                raise
            log.warning("waiting for the database", error=str(error).partition("\n")[0])
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

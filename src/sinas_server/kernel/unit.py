"""The unit of work: one transaction per request or journal step, committed before anyone hears of it.

This is the only module that commits. What must happen only if the transaction holds (enqueueing, publishing,
forgetting a cache entry) is registered with `Db.after_commit`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Executable, Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.pool import QueuePool

from sinas_server.backends.db import is_lost
from sinas_server.backends.db.direct import DirectReader
from sinas_server.kernel.access import Caller
from sinas_server.kit.crypto import Sealer
from sinas_server.settings import Settings

GIVE_BACK_SECONDS = 2.0
GIVE_BACK_LOOKS = 400
AfterCommit = Callable[[], Awaitable[object]]


class Db(AsyncSession):
    """A database session that lives for one transaction; connects at its first statement."""

    sealer: Sealer
    settings: Settings
    """What the operator allows, for the rules of kinds."""
    actor: Caller | None = None
    """Whoever the store is writing for, so that a kind's `on_change` can ask what they may do."""

    def after_commit(self, action: AfterCommit) -> None:
        """Run `action` once this transaction is committed; never if it is rolled back."""
        self.info.setdefault("after_commit", []).append(action)


class Database:
    """PostgreSQL as the rest of the program sees it."""

    def __init__(self, engine: AsyncEngine, sealer: Sealer, settings: Settings) -> None:
        self.engine = engine
        self.sealer = sealer
        self.settings = settings
        self._direct = DirectReader(engine)
        self._autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._asked: set[asyncio.Task[Sequence[Row[Any]]]] = set()
        """The event loop itself refers to its tasks only weakly."""

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Db]:
        """One transaction: commits when the block ends, then runs what was registered; rolls back on an exception."""
        async with Db(self.engine, expire_on_commit=False, autoflush=False) as db:
            db.sealer = self.sealer
            db.settings = self.settings
            yield db
            await db.commit()
        for action in db.info.get("after_commit", ()):
            await action()

    async def rows(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Row[Any]]:
        """The rows of one statement, outside any transaction (a single round trip).

        Canceled, it still comes to its end: SQLAlchemy loses a new connection whose mode is just being set.
        """
        task = asyncio.ensure_future(self._rows(statement, parameters))
        self._asked.add(task)
        task.add_done_callback(self._answered)
        return await asyncio.shield(task)

    def _answered(self, task: "asyncio.Task[Sequence[Row[Any]]]") -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # whoever has gone does not want to hear of it

    async def _rows(self, statement: Executable, parameters: dict[str, Any] | None) -> Sequence[Row[Any]]:
        async with self._autocommit.connect() as connection:
            result = await connection.execute(statement, parameters)
            return result.all() if result.returns_rows else []

    async def read(self, statement: Executable, parameters: dict[str, Any] | None = None) -> Sequence[Row[Any]]:
        """Like `rows`, for statements that change nothing: asked again once if the server has been restarted."""
        try:
            return await self.rows(statement, parameters)
        except DBAPIError as error:
            if not is_lost(error):
                raise
            return await self.rows(statement, parameters)

    async def lookup(self, statement: Executable, parameters: dict[str, Any]) -> Sequence[Any]:
        """Like `read`, at a fraction of the cost, for the hottest statements: constants, compiled and prepared once."""
        try:
            return await self._direct.fetch(statement, parameters)
        except DBAPIError as error:
            if not is_lost(error):
                raise
            return await self._direct.fetch(statement, parameters)

    async def direct(self, statement: Executable, parameters: dict[str, Any]) -> Sequence[Any]:
        """One constant statement that gives rows, committed by itself, as cheap as `lookup`; never repeated."""
        return await self._direct.fetch(statement, parameters)

    async def close(self) -> None:
        """Close every connection; those that canceled work is just giving back are waited for."""
        await self._direct.close(GIVE_BACK_SECONDS)
        if self._asked:
            await asyncio.wait(self._asked, timeout=GIVE_BACK_SECONDS)
        pool = self.engine.pool
        for _ in range(GIVE_BACK_LOOKS):
            if not isinstance(pool, QueuePool) or not pool.checkedout():
                break
            await asyncio.sleep(GIVE_BACK_SECONDS / GIVE_BACK_LOOKS)
        await self.engine.dispose()

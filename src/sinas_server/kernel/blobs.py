"""Blobs and the rows that say who needs them: nothing that is held is deleted, and nothing that is not stays.

A blob's row is committed before its bytes are kept, so that the database knows of every blob there is. Whoever needs it
holds it by a foreign key. Blobs that nobody holds are deleted some time after they last arrived: the row first, and the
bytes before that is committed. Who brings the same bytes meanwhile waits for the row, and keeps them anew.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    String,
    and_,
    bindparam,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from sinas_server.backends.blobs import BlobMissingError, BlobStoreError
from sinas_server.kernel.errors import UnavailableError
from sinas_server.kernel.loop import Loop
from sinas_server.kernel.runtime import Runtime
from sinas_server.kernel.tables import Base, BlobRow
from sinas_server.kit.clock import now

KEPT = timedelta(hours=1)
"""How long a blob has for becoming held."""
AT_ONCE = 100


@dataclass(frozen=True)
class Blob:
    """Bytes that are kept."""

    key: str
    size: int


_NEW = insert(BlobRow).values(key=bindparam("of_key", type_=String), size=bindparam("of_size", type_=BigInteger))
_ARRIVED = _NEW.on_conflict_do_update(index_elements=[BlobRow.key], set_={"used_at": func.now()})
_USED = update(BlobRow).where(BlobRow.key == bindparam("of_key")).values(used_at=func.now()).returning(BlobRow.key)


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except BlobStoreError as error:
        raise UnavailableError("files cannot be kept or read now; try again", {"Retry-After": "5"}) from error


async def keep(runtime: Runtime, pieces: AsyncIterable[bytes], most: int) -> Blob:
    """Keep bytes for whoever holds them within `KEPT`. Raises `BlobTooLargeError` and `UnavailableError`."""
    with _available():
        async with runtime.blobs.stage(pieces, most) as staged:
            await runtime.database.rows(_ARRIVED, {"of_key": staged.key, "of_size": staged.size})
            await staged.keep()
            return Blob(staged.key, staged.size)


async def use_again(runtime: Runtime, key: str) -> Blob | None:
    """A blob that somebody else holds, for whoever holds it too within `KEPT`; None if it is gone."""
    rows = await runtime.database.rows(_USED, {"of_key": key})
    try:
        with _available():
            return Blob(key, await runtime.blobs.size(key)) if rows else None
    except BlobMissingError:
        return None


async def read(runtime: Runtime, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
    """A blob's bytes in pieces. Raises `BlobMissingError` and `UnavailableError`."""
    with _available():
        async for piece in runtime.blobs.read(key, start, length):
            yield piece


async def whole(runtime: Runtime, key: str) -> bytes:
    """All bytes of a blob. Raises `BlobMissingError` and `UnavailableError`."""
    return b"".join([piece async for piece in read(runtime, key)])


def _held() -> ColumnElement[bool]:
    """Whether a row of any table names the blob: those tables are known by their foreign keys."""
    keys = (key for table in Base.metadata.tables.values() for key in table.foreign_keys)
    holders = [key.parent for key in keys if key.references(BlobRow.__table__)]  # type: ignore[arg-type]  # a Table
    return or_(false(), *(exists().where(column == BlobRow.key) for column in holders))


async def free_unused(runtime: Runtime, unused_for: timedelta = KEPT) -> None:
    """Delete the blobs that nobody holds and nobody brought for so long, and what dead processes left behind."""
    await runtime.blobs.tidy(max(unused_for, KEPT).total_seconds())
    unused = and_(BlobRow.used_at <= now() - unused_for, ~_held())
    query = select(BlobRow.key).where(unused).limit(AT_ONCE)
    while True:
        found = await runtime.database.rows(query)
        freed = [await _free(runtime, row.key, unused) for row in found]
        if len(found) < AT_ONCE or not any(freed):
            return


async def _free(runtime: Runtime, key: str, unused: ColumnElement[bool]) -> bool:
    """Delete one blob unless it is held by now; the row stays locked until the bytes are gone."""
    try:
        async with runtime.database.unit() as db:
            gone = await db.execute(delete(BlobRow).where(BlobRow.key == key, unused).returning(BlobRow.key))
            if gone.first() is None:
                return False
            await runtime.blobs.delete(key)
    except IntegrityError:  # held at this very moment
        return False
    return True


BLOBS_LOOP = Loop("free unused blobs", 600, free_unused)

"""Blobs as files of one directory. Processes on several machines need it on a volume that they share."""

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sinas_server.backends.blobs import BlobMissingError, BlobStoreError, BlobTooLargeError, checked

PIECE = 1 << 18
"""Bytes that are read at a time."""
STAGING = "staging"


@contextmanager
def _told() -> Iterator[None]:
    """What the file system says, in the words of the port."""
    try:
        yield
    except FileNotFoundError as error:
        raise BlobMissingError("no blob is kept under this key") from error
    except OSError as error:
        raise BlobStoreError(f"the directory of blobs cannot be used: {error.strerror or error}") from error


@dataclass
class _StagedFile:
    """A whole temporary file of the same file system."""

    temporary: Path
    target: Path
    key: str
    size: int

    async def keep(self) -> None:
        with _told():
            await asyncio.to_thread(self._keep)

    def _keep(self) -> None:
        self.target.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            self.temporary.replace(self.target)
        except FileNotFoundError:
            if not self.target.exists():  # else it was kept before
                raise
        _sync(self.target.parent)
        _sync(self.target.parent.parent)


class DiskBlobs:
    """Blobs under `<directory>/<first two digits of the key>/<key>`; see `Blobs`."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made when it is first needed."""
        self._directory = directory

    @asynccontextmanager
    async def stage(self, pieces: AsyncIterable[bytes], most: int) -> AsyncGenerator[_StagedFile, None]:
        """See `Blobs.stage`."""
        with _told():
            file = await asyncio.to_thread(self._begin)
        try:
            with file:
                digest, size = hashlib.sha256(), 0
                async for piece in pieces:
                    size += len(piece)
                    if size > most:
                        raise BlobTooLargeError(f"there are more than {most} bytes")
                    with _told():
                        await asyncio.to_thread(_add, file, digest, piece)
                with _told():
                    await asyncio.to_thread(_finish, file)
            key = digest.hexdigest()
            yield _StagedFile(Path(file.name), self._path(key), key, size)
        finally:
            await asyncio.to_thread(Path(file.name).unlink, missing_ok=True)

    def _begin(self) -> "tempfile._TemporaryFileWrapper[bytes]":
        staging = self._directory / STAGING
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.NamedTemporaryFile(dir=staging, delete=False)  # of mode 0600

    async def size(self, key: str) -> int:
        """See `Blobs.size`."""
        path = self._path(key)
        with _told():
            return (await asyncio.to_thread(path.stat)).st_size

    async def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `Blobs.read`. A blob that is deleted meanwhile is read to its end."""
        with _told():
            file = await asyncio.to_thread(self._path(key).open, "rb")
        with file:
            await asyncio.to_thread(file.seek, start)
            left = length
            while left is None or left > 0:
                with _told():
                    piece = await asyncio.to_thread(file.read, PIECE if left is None else min(PIECE, left))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece

    async def delete(self, key: str) -> None:
        """See `Blobs.delete`."""
        path = self._path(key)
        with _told():
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def tidy(self, older_than_seconds: float) -> int:
        """See `Blobs.tidy`."""
        with _told():
            return await asyncio.to_thread(self._tidy, time.time() - older_than_seconds)

    def _tidy(self, before: float) -> int:
        staging, gone = self._directory / STAGING, 0
        for path in staging.iterdir() if staging.exists() else ():
            try:
                if path.stat().st_mtime <= before:
                    path.unlink()
                    gone += 1
            except FileNotFoundError:
                continue  # its process has just ended with it
        return gone

    def _path(self, key: str) -> Path:
        return self._directory / checked(key)[:2] / key


def _add(file: IO[bytes], digest: "hashlib._Hash", piece: bytes) -> None:
    file.write(piece)
    digest.update(piece)


def _finish(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Make a rename inside it survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

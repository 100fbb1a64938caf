"""Blobs: bytes kept under the SHA-256 of their content, outside the database.

The key says what the bytes are: keeping the same bytes twice is keeping them once, and what is kept never changes. Who
needs which blob, and when one may go, is not known here: `kernel.blobs` is.
"""

import re
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

KEY = re.compile(r"[0-9a-f]{64}")
"""The SHA-256 of a content in lower-case hex."""


class BlobError(Exception):
    """What was asked cannot be done; the message says why."""


class BlobMissingError(BlobError):
    """Nothing is kept under this key."""


class BlobTooLargeError(BlobError):
    """There are more bytes than are allowed."""


class BlobStoreError(BlobError):
    """The store does not answer, or is full; trying again may help."""


def checked(key: str) -> str:
    """The key, if it is one: nothing else becomes part of a path. Raises `BlobMissingError`."""
    if KEY.fullmatch(key) is None:
        raise BlobMissingError("no blob has such a key")
    return key


class Staged(Protocol):
    """Bytes that have arrived whole and are not kept yet."""

    key: str
    size: int
    """In bytes."""

    async def keep(self) -> None:
        """Keep them under their key, durably and at once: a reader sees all of them or nothing.

        Safe to repeat, also for bytes that are kept already. Raises `BlobStoreError`.
        """
        ...


class Blobs(Protocol):
    """A place for blobs that every process of an installation reaches."""

    def stage(self, pieces: AsyncIterable[bytes], most: int) -> AbstractAsyncContextManager[Staged]:
        """Take bytes in as they come; those that are not kept when the context ends are forgotten.

        Raises `BlobTooLargeError` as soon as there are more than `most`, and `BlobStoreError`.
        """
        ...

    async def size(self, key: str) -> int:
        """How many bytes a blob has. Raises `BlobMissingError` and `BlobStoreError`."""
        ...

    def read(self, key: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """A blob's bytes in pieces, from `start` on, at most `length`.

        Raises `BlobMissingError` and `BlobStoreError`.
        """
        ...

    async def delete(self, key: str) -> None:
        """Forget a blob; one that is not there is none. Raises `BlobStoreError`."""
        ...

    async def tidy(self, older_than_seconds: float) -> int:
        """Forget what was staged longer ago and never kept, since its process died: how many.

        Raises `BlobStoreError`.
        """
        ...

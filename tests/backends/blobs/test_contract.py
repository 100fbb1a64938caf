"""What every store of blobs promises, on each implementation."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sinas_server.backends.blobs import BlobMissingError, Blobs, BlobStoreError, BlobTooLargeError
from sinas_server.backends.blobs.disk import PIECE, STAGING, DiskBlobs

BYTES = hashlib.shake_256(b"a blob").digest(3 * PIECE + 17)  # the same in every process: tests are named by its key
KEY = hashlib.sha256(BYTES).hexdigest()
OPEN: dict[str, Callable[[Path], Blobs]] = {"disk": DiskBlobs}


@pytest.fixture(params=OPEN)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return OPEN[request.param](tmp_path / "blobs")


async def pieces(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def keep(blobs: Blobs, content: bytes) -> str:
    async with blobs.stage(pieces(content), len(content)) as staged:
        await staged.keep()
        assert staged.size == len(content)
        return staged.key


async def whole(blobs: Blobs, key: str, start: int = 0, length: int | None = None) -> bytes:
    return b"".join([piece async for piece in blobs.read(key, start, length)])


async def test_what_is_kept_is_read_again(blobs: Blobs) -> None:
    assert await keep(blobs, BYTES) == KEY
    assert await blobs.size(KEY) == len(BYTES)
    assert await whole(blobs, KEY) == BYTES


@pytest.mark.parametrize(("start", "length"), [(0, 10), (5, PIECE + 1), (PIECE, None), (len(BYTES) - 1, 5), (10**9, 1)])
async def test_a_part_is_read(blobs: Blobs, start: int, length: int | None) -> None:
    await keep(blobs, BYTES)
    end = None if length is None else start + length
    assert await whole(blobs, KEY, start, length) == BYTES[start:end]


async def test_the_same_bytes_are_kept_once(blobs: Blobs) -> None:
    assert len({await keep(blobs, BYTES) for _ in range(3)}) == 1
    keys = await asyncio.gather(*(keep(blobs, BYTES) for _ in range(8)))
    assert set(keys) == {KEY}
    await blobs.delete(KEY)
    with pytest.raises(BlobMissingError):
        await blobs.size(KEY)


async def test_keeping_twice_is_keeping_once(blobs: Blobs) -> None:
    async with blobs.stage(pieces(BYTES), len(BYTES)) as staged:
        await staged.keep()
        await staged.keep()
    assert await whole(blobs, KEY) == BYTES


async def test_nothing_of_what_is_not_kept_stays(blobs: Blobs) -> None:
    async with blobs.stage(pieces(BYTES), len(BYTES)) as staged:
        assert staged.key == KEY
    with pytest.raises(BlobMissingError):
        await whole(blobs, KEY)
    assert await blobs.tidy(0) == 0


async def test_too_many_bytes_are_refused_at_once(blobs: Blobs) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 1000

    with pytest.raises(BlobTooLargeError):
        async with blobs.stage(endless(), 9_999):
            pass
    assert taken == 10
    assert await blobs.tidy(0) == 0


async def test_no_bytes_are_a_blob_too(blobs: Blobs) -> None:
    key = await keep(blobs, b"")
    assert await whole(blobs, key) == b""


@pytest.mark.parametrize("key", ["", "../../etc/passwd", KEY.upper(), KEY[:-1], f"{KEY}\n", "/" * 64, "0" * 64])
async def test_what_is_no_key_is_missing(blobs: Blobs, key: str) -> None:
    with pytest.raises(BlobMissingError):
        await blobs.size(key)
    with pytest.raises(BlobMissingError):
        await whole(blobs, key)


async def test_deleting_what_is_not_there_is_nothing(blobs: Blobs) -> None:
    await blobs.delete("0" * 64)


async def test_a_reader_reads_on_while_it_is_deleted(blobs: Blobs) -> None:
    await keep(blobs, BYTES)
    reader = aiter(blobs.read(KEY))
    read = [await anext(reader)]
    await blobs.delete(KEY)
    read += [piece async for piece in reader]
    assert b"".join(read) == BYTES


async def test_what_a_dead_process_left_is_tidied(tmp_path: Path) -> None:
    blobs = DiskBlobs(tmp_path)
    staging = blobs.stage(pieces(BYTES), len(BYTES))
    await staging.__aenter__()  # and never ended, as by a process that is killed
    assert await blobs.tidy(3600) == 0
    assert await blobs.tidy(-1) == 1
    assert list((tmp_path / STAGING).iterdir()) == []


async def test_files_are_private_and_named_by_their_content(tmp_path: Path) -> None:
    await keep(DiskBlobs(tmp_path), BYTES)
    file = tmp_path / KEY[:2] / KEY
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


async def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(BlobStoreError):
        await keep(DiskBlobs(tmp_path / "blobs"), BYTES)

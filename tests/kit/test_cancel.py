"""What is done when a task is canceled comes to its end."""

import asyncio

import pytest

from sinas_server.kit.cancel import to_the_end


async def test_a_second_cancel_does_not_cut_it_off() -> None:
    may_end, has_begun, said = asyncio.Event(), asyncio.Event(), list[str]()

    async def clean_up() -> None:
        has_begun.set()
        await may_end.wait()
        said.append("cleaned up")

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await to_the_end(clean_up())
            raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await has_begun.wait()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["cleaned up"]


async def test_a_cancel_meanwhile_is_not_swallowed() -> None:
    """Whoever cancels a task waits for its end."""
    may_end, has_begun, said = asyncio.Event(), asyncio.Event(), list[str]()

    async def tidy_up() -> None:
        has_begun.set()
        await may_end.wait()
        said.append("tidied up")

    async def work() -> None:
        await to_the_end(tidy_up())
        said.append("goes on")

    task = asyncio.create_task(work())
    await has_begun.wait()
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["tidied up"]


async def test_what_it_raises_is_raised() -> None:
    async def fails() -> None:
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        await to_the_end(fails())

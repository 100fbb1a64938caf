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
            said.append("stops")
            raise

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await has_begun.wait()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert said == ["cleaned up", "stops"]


async def test_what_it_raises_is_raised() -> None:
    async def fails() -> None:
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        await to_the_end(fails())

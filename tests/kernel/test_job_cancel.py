"""Canceling what a worker runs, or is just claiming."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Executable, delete, update

from sinas_server.kernel.job import cancel_topic
from tests.kernel.work import PATIENCE, QUEUE, Scene, WorkRow


@pytest.mark.parametrize("statement", [update(WorkRow).values(status="CANCELLED"), delete(WorkRow)])
async def test_cancel_stops_it(scene: Scene, statement: Executable) -> None:
    scene.hold("row")
    await scene.add("row")
    async with scene.worker() as worker:
        await scene.until(lambda: "row" in scene.now)
        await scene.runtime.database.rows(statement)
        await scene.runtime.signals.signal(cancel_topic(QUEUE))
        await scene.until(lambda: scene.canceled == ["row"] and not worker.running)
        await scene.add("next")
        await scene.until(lambda: scene.ended == ["next"])


async def test_what_has_ended_may_tell_so_though_others_are_canceled(scene: Scene) -> None:
    """A look at what is still its own finds the row of a run that is still at work neither running nor canceled."""
    scene.tails["ended"] = asyncio.Event()
    scene.hold("other")
    await scene.add("ended")
    other = await scene.add("other")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["ended"] and "other" in scene.now)
        await scene.runtime.database.rows(update(WorkRow).where(WorkRow.id == other).values(status="CANCELLED"))
        await scene.runtime.signals.signal(cancel_topic(QUEUE))
        await scene.until(lambda: scene.canceled == ["other"])
        scene.tails["ended"].set()
        await scene.until(lambda: scene.told == ["ended"])
    assert scene.canceled == ["other"]


async def test_cancel_works_without_the_signal(scene: Scene) -> None:
    scene.hold("row")
    row_id = await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: "row" in scene.now)
        await scene.runtime.database.rows(update(WorkRow).where(WorkRow.id == row_id).values(status="CANCELLED"))
        await scene.until(lambda: scene.canceled == ["row"])


@pytest.fixture
def no_looks(scene: Scene) -> None:
    """Workers look whether their rows are still theirs only when they are told to."""
    settings = scene.runtime.settings.model_copy(update={"job_lease_seconds": 100_000})
    scene.runtime = dataclasses.replace(scene.runtime, settings=settings)


@pytest.mark.usefixtures("no_looks")
async def test_cancel_stops_what_is_just_being_claimed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is claimed, and its worker has not heard of it yet, when it is canceled and the worker told."""
    database, claimed, heard = scene.runtime.database, asyncio.Event(), asyncio.Event()

    async def direct(statement: Executable, parameters: dict[str, Any]) -> Sequence[Any]:
        rows = await real(statement, parameters)
        if rows:
            claimed.set()
            await heard.wait()
        return rows

    real = database.direct
    monkeypatch.setattr(database, "direct", direct)
    scene.hold("row")
    row_id = await scene.add("row")
    async with scene.worker() as worker:
        async with asyncio.timeout(PATIENCE):
            await claimed.wait()
        await database.rows(update(WorkRow).where(WorkRow.id == row_id).values(status="CANCELLED"))
        await scene.runtime.signals.signal(cancel_topic(QUEUE))
        async with asyncio.timeout(PATIENCE):
            while not worker._claiming._waiters:  # the one who was told waits for the claim's end
                await asyncio.sleep(0.01)
        heard.set()
        await scene.until(lambda: scene.canceled == ["row"] and not worker.running)
    assert (await scene.row("row")).status == "CANCELLED"

"""Workers over a table of their own, on the real servers: nothing runs twice, and nothing is lost."""

import asyncio

import psycopg
import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sinas_server.kernel import job
from sinas_server.kernel.job import Claim, InterruptedWorkError, Worker, wake
from tests.kernel.work import LONG, PATIENCE, QUEUE, Scene, WorkRow


async def test_first_in_first_out(scene: Scene) -> None:
    names = [f"row-{number}" for number in range(8)]
    for name in names:
        await scene.add(name)
    async with scene.worker(slots=1):
        await scene.until(lambda: len(scene.ended) == len(names))
    assert scene.begun == scene.ended == names


async def test_no_more_than_its_slots(scene: Scene) -> None:
    for number in range(6):
        scene.hold(f"row-{number}")
        await scene.add(f"row-{number}")
    async with scene.worker(slots=2) as worker:
        await scene.until(lambda: len(scene.now) == 2)
        await asyncio.sleep(job.POLL_SECONDS * 1.5)
        assert scene.most == 2 == len(worker.running)
        for door in scene.doors.values():
            door.set()
        await scene.until(lambda: len(scene.ended) == 6)
    assert scene.most == 2


async def test_nested_work_passes_the_limit(scene: Scene) -> None:
    """Fifty rows that others wait for start at once although every slot is taken."""
    scene.hold("parent")
    await scene.add("parent")
    async with scene.worker(slots=1):
        await scene.until(lambda: "parent" in scene.now)
        for number in range(50):
            scene.hold(f"child-{number}")
            await scene.add(f"child-{number}", depth=1)
        await scene.add("outsider")
        await scene.until(lambda: len(scene.now) == 51)
        assert "outsider" not in scene.begun
        for door in scene.doors.values():
            door.set()
        await scene.until(lambda: len(scene.ended) == 52)


async def test_nested_work_does_not_wait_for_the_poll_when_slots_are_free(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "POLL_SECONDS", PATIENCE)
    for number in range(6):
        await scene.add(f"child-{number}", depth=1, wakes=False)
    await wake(scene.runtime, QUEUE, 1)
    async with scene.worker(slots=1):
        async with asyncio.timeout(PATIENCE / 2):
            await scene.until(lambda: len(scene.ended) == 6)


async def test_a_lost_lease_is_handed_over_once(scene: Scene) -> None:
    scene.lease(LONG)
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one") as first:
        await scene.until(lambda: "row" in scene.now)
        await scene.die(first)
        await scene.until(lambda: not first.running)
        await scene.run_out("row")
        async with scene.worker(name="two"), scene.worker(name="three"):
            await scene.until(lambda: len(scene.begun) == 2)
            await asyncio.sleep(job.POLL_SECONDS * 2)
            assert scene.begun == ["row", "row"]
            scene.doors["row"].set()
            await scene.until(lambda: scene.ended == ["row"])
    row = await scene.row("row")
    assert (row.status, row.attempt) == ("COMPLETED", 2)
    assert scene.interrupted == ["row"]


async def test_a_lease_is_kept_while_the_work_goes_on(scene: Scene) -> None:
    scene.lease(15)  # and the machine may let it wait for most of that
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one"), scene.worker(name="two"):
        await scene.until(lambda: "row" in scene.now)
        leased = (await scene.row("row")).lease_until
        async with asyncio.timeout(PATIENCE):
            while (await scene.row("row")).lease_until == leased:
                await asyncio.sleep(0.1)
        assert scene.begun == ["row"]
        scene.doors["row"].set()
        await scene.until(lambda: scene.ended == ["row"])


async def test_its_own_work_is_not_claimed_again_when_its_lease_ran_out(scene: Scene) -> None:
    """As after a database that was away for longer than the lease."""
    scene.hold("row")
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: "row" in scene.now)
        await scene.run_out("row")
        await asyncio.sleep(job.POLL_SECONDS * 3)
        scene.doors["row"].set()
        await scene.until(lambda: scene.ended == ["row"])
    assert (scene.begun, scene.canceled) == (["row"], [])


async def test_two_workers_never_run_one_row_twice(scene: Scene) -> None:
    scene.lease(LONG)
    names = {f"row-{number}" for number in range(60)}
    async with scene.worker(4, "one"), scene.worker(4, "two"), scene.worker(4, "three"):
        await asyncio.gather(*(scene.add(name) for name in names))
        await scene.until(lambda: len(scene.ended) == len(names))
    assert sorted(scene.begun) == sorted(scene.ended) == sorted(names)


async def test_a_lost_wake_up_only_delays(scene: Scene) -> None:
    async with scene.worker():
        await scene.add("row", wakes=False)
        await scene.until(lambda: scene.ended == ["row"])


async def test_redis_away_and_back(scene: Scene) -> None:
    """Every connection is cut and new ones are refused for a while."""
    url = scene.runtime.settings.redis_url.get_secret_value()
    async with scene.worker(), Redis.from_url(url, single_connection_client=True) as control:
        await scene.add("before")
        await scene.until(lambda: scene.ended == ["before"])
        await control.config_set("maxclients", 1)
        try:
            for sort in ("normal", "pubsub"):
                await control.client_kill_filter(_type=sort, skipme=True)
            await scene.add("during")
            await scene.until(lambda: scene.ended == ["before", "during"])
        finally:
            await control.config_set("maxclients", 1000)
        await scene.add("after")
        await scene.until(lambda: scene.ended == ["before", "during", "after"])


async def test_a_killed_database_connection(scene: Scene) -> None:
    """All connections are terminated while a row runs: it goes on from its row, once."""

    async def kill() -> None:
        await scene.runtime.database.rows(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
        )

    scene.troubles["row"] = kill
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["row"])
        await scene.add("next")
        await scene.until(lambda: scene.ended == ["row", "next"])
    assert (await scene.row("row")).attempt == 2
    assert scene.interrupted == ["row"]


async def test_interrupted_work_is_given_back(scene: Scene) -> None:
    async def lost() -> None:
        raise InterruptedWorkError("the stream is away")

    scene.troubles["row"] = lost
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["row"])
    row = await scene.row("row")
    assert (row.attempt, row.error, scene.interrupted) == (2, None, ["row"])


@pytest.mark.parametrize(
    "trouble",
    [
        OperationalError("COMMIT", None, psycopg.errors.DeadlockDetected()),
        OperationalError("connect", None, psycopg.errors.TooManyConnections()),
        PoolTimeoutError("no connection is free"),
    ],
    ids=["deadlock", "too many connections", "pool"],
)
async def test_work_that_finds_the_database_busy_is_given_back(scene: Scene, trouble: Exception) -> None:
    """The same may well succeed in a moment: that is no reason to end it for good."""

    async def busy() -> None:
        raise trouble

    scene.troubles["row"] = busy
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["row"])
    row = await scene.row("row")
    assert (row.attempt, row.error, scene.interrupted) == (2, None, ["row"])


async def test_looks_without_a_free_slot_give_the_background_no_turn(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth row comes from the background, however often the worker looks for nested ones meanwhile."""
    claim, looks = Worker._claim, 0

    async def counted(self: Worker[WorkRow], most: int, *, has_slots: bool) -> list[Claim[WorkRow]]:
        nonlocal looks
        claims = await claim(self, most, has_slots=has_slots)
        looks += 1
        return claims

    async def looked() -> None:
        before = looks
        await wake(scene.runtime, QUEUE, 1)
        await scene.until(lambda: looks > before)

    monkeypatch.setattr(Worker, "_claim", counted)
    names = [f"{sort} {number}" for number in range(4) for sort in ("asked", "background")]
    for name in names:
        scene.troubles[name] = looked
        await scene.add(name, wakes=False, background=name.startswith("background"))
    async with scene.worker(slots=1):
        await scene.until(lambda: len(scene.ended) == len(names))
    assert scene.ended[:5] == ["asked 0", "asked 1", "asked 2", "background 0", "asked 3"]


async def _queue_behind_one(scene: Scene) -> tuple[list[str], asyncio.Event]:
    """Rows of which the first is held: their names, and what lets it go."""
    names = ["first", *(f"row-{number}" for number in range(5))]
    door = scene.hold("first")
    for name in names:
        await scene.add(name, wakes=False)
    return names, door


async def test_a_slot_that_gets_free_while_it_finds_out_what_it_holds_is_one_slot(scene: Scene) -> None:
    """As after a restart of the database, whose last answer was lost."""
    names, door = await _queue_behind_one(scene)
    async with scene.worker(slots=1) as worker:
        await scene.until(lambda: "first" in scene.now)

        async def meanwhile() -> bool:
            door.set()
            await scene.until(lambda: not worker.running)
            return True

        object.__setattr__(worker, "_release_own", meanwhile)
        object.__setattr__(worker, "_unsure", True)
        await wake(scene.runtime, QUEUE, 1)
        await scene.until(lambda: len(scene.ended) == len(names))
    assert scene.most == 1


async def test_a_slot_that_gets_free_while_it_waits_to_claim_is_one_slot(scene: Scene) -> None:
    """It then looks for nested work only, of which it may take far more than it has slots."""
    names, door = await _queue_behind_one(scene)
    async with scene.worker(slots=1) as worker:
        await scene.until(lambda: "first" in scene.now)
        async with worker._claiming:  # as who keeps leases does
            await wake(scene.runtime, QUEUE, 1)
            await scene.until(lambda: bool(worker._claiming._waiters))
            door.set()
            await scene.until(lambda: not worker.running)
        await scene.until(lambda: len(scene.ended) == len(names))
    assert scene.most == 1


async def test_a_failure_is_stored(scene: Scene) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("by zero")

    scene.troubles["row"] = broken
    await scene.add("row")
    async with scene.worker() as worker:
        await scene.until(lambda: bool(scene.begun) and not worker.running)
    row = await scene.row("row")
    assert (row.status, row.error) == ("FAILED", "ZeroDivisionError: by zero")


async def test_stopping_gives_rows_back(scene: Scene) -> None:
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one"):
        await scene.until(lambda: "row" in scene.now)
    assert scene.canceled == ["row"]
    row = await scene.row("row")
    assert row.status == "RUNNING"
    assert row.lease_until is not None
    scene.doors["row"].set()
    async with scene.worker(name="two"):
        async with asyncio.timeout(PATIENCE):
            await scene.until(lambda: scene.ended == ["row"])
    assert (await scene.row("row")).attempt == 2


async def test_a_restart_under_the_same_name_takes_over_at_once(scene: Scene) -> None:
    scene.lease(LONG)
    scene.hold("row")
    await scene.add("row")
    async with scene.worker(name="one") as first:
        await scene.until(lambda: "row" in scene.now)
        await scene.die(first)
    scene.doors["row"].set()
    async with scene.worker(name="one"):
        await scene.until(lambda: scene.ended == ["row"])
    assert scene.interrupted == ["row"]


async def test_a_worker_starts_while_the_database_is_busy(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that fails is logged and tried again."""
    claim = Worker._claim
    failures = iter([True])

    async def sometimes(self: Worker[WorkRow], most: int, *, has_slots: bool) -> list[Claim[WorkRow]]:
        if next(failures, False):
            await self.runtime.database.rows(text("SELECT 1 / 0"))
        return await claim(self, most, has_slots=has_slots)

    monkeypatch.setattr(Worker, "_claim", sometimes)
    await scene.add("row")
    async with scene.worker():
        await scene.until(lambda: scene.ended == ["row"])

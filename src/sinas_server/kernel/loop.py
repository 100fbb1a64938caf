"""What runs for ever beside the queues: a declaration, and the one runner of the scheduler process."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from sinas_server.kernel.runtime import Runtime

log = structlog.get_logger()


@dataclass(frozen=True)
class Loop:
    """Something done again and again, safe to be done by several processes at once."""

    name: str
    every_seconds: float
    step: Callable[[Runtime], Awaitable[None]]


async def run_loop(runtime: Runtime, loop: Loop) -> None:
    """Do the step for ever; a step that fails is logged and tried again at its next time."""
    while True:
        try:
            await loop.step(runtime)
        except Exception as error:  # noqa: BLE001 - the edge of a loop: one failed step must not end it
            log.warning("loop step failed", loop=loop.name, error=str(error).partition("\n")[0])
        await asyncio.sleep(loop.every_seconds)


async def run_loops(runtime: Runtime, loops: Sequence[Loop]) -> None:
    """Run all of them until canceled."""
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(run_loop(runtime, loop))

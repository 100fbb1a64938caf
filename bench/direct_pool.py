"""The sandbox pool driven without the platform, in a process of its own: `python -m bench.direct_pool CALLERS`.

For each line `SECONDS` on standard input it runs executions with so many callers for so long, and prints
`{"completed", "failed", "seconds"}`. The settings are those of the environment, as a function worker's are.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass

import structlog
import uvloop

from bench.handler import CODE, INPUT, RESULT
from sinas_server.backends.sandbox import Sandbox, Task
from sinas_server.backends.sandbox.config import limits
from sinas_server.roles import start_function_sandbox
from sinas_server.settings import load_settings


@dataclass
class Count:
    """What is printed."""

    completed: int = 0
    failed: int = 0
    seconds: float = 0.0


async def run(sandbox: Sandbox, task: Task, callers: int, seconds: float) -> Count:
    count, began = Count(), time.perf_counter()

    async def call() -> None:
        while time.perf_counter() < began + seconds:
            outcome = await sandbox.run(task)
            if outcome.result == RESULT:
                count.completed += 1
            else:
                count.failed += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    count.seconds = time.perf_counter() - began
    return count


async def main(callers: int) -> None:
    settings = load_settings()
    task = Task(
        code=CODE,
        entry_points=("handler",),
        input=INPUT,
        context={},
        limits=limits(settings, settings.function_timeout),
    )
    sandbox = await start_function_sandbox(settings, "bench")
    print("ready", flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(vars(await run(sandbox, task, callers, float(line)))), flush=True)
    finally:
        await sandbox.close()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the counts
    uvloop.run(main(int(sys.argv[1])))

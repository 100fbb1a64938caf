"""The Docker driver beside the native one, by turns in one process: `python -m bench.docker_pool ROUNDS CALLS`.

Prints `{"native": [...], "docker": [...]}`, seconds of each execution, or `{"reason": ...}` where there is no engine.
"""

import asyncio
import json
import sys
import time

import uvloop

from bench.handler import CODE, INPUT, RESULT
from sinas_server.backends.sandbox import Sandbox, SandboxUnavailable, Task
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.docker import DockerConfig, DockerSandbox
from sinas_server.backends.sandbox.native import NativeSandbox
from sinas_server.settings import load_settings

PAUSE = 0.03
"""Seconds between two executions: latency is measured, not how fast a pool is refilled."""


async def run(sandbox: Sandbox, calls: int) -> list[float]:
    task, times = Task(CODE, ("handler",), INPUT, {}), list[float]()
    for _ in range(calls):
        await asyncio.sleep(PAUSE)
        began = time.perf_counter()
        outcome = await sandbox.run(task)
        times.append(time.perf_counter() - began)
        assert outcome.result == RESULT, outcome
    return times


async def main(rounds: int, calls: int) -> None:
    config = SandboxConfig()
    image = load_settings().sandbox_image
    drivers: dict[str, Sandbox] = {
        "native": NativeSandbox(config),
        "docker": DockerSandbox(config, DockerConfig(image=image, installation="bench")),
    }
    try:
        for sandbox in drivers.values():
            await sandbox.start()
        times: dict[str, list[float]] = {name: [] for name in drivers}
        for _ in range(rounds):
            for name, sandbox in drivers.items():
                times[name] += await run(sandbox, calls)
        print(json.dumps(times))
    except SandboxUnavailable as error:
        print(json.dumps({"reason": str(error)}))
    finally:
        for sandbox in drivers.values():
            await sandbox.close()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))

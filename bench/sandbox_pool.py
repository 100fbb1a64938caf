"""The sandbox pool driven directly, beside a bare `python -c pass` in the same run.

Usage: python bench/sandbox_pool.py. Prints one JSON object; times in milliseconds, rates per second.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time

from sinas_server.backends.sandbox import Limits, Task
from sinas_server.backends.sandbox.native import NativeSandbox, SandboxConfig, open_sandbox

CODE = "def handler(input_data, context):\n    return {'x': input_data['a'] + 1}\n"
TASK = Task(CODE, ("handler",), {"a": 1}, {}, Limits())
ROUNDS = 60
PAUSE = 0.03
CALLERS, CALLS = 32, 400


def bare_python() -> float:
    """Seconds of one `python -c pass` of the interpreter that runs functions."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - started


async def one(sandbox: NativeSandbox) -> float:
    """Seconds of one execution."""
    started = time.perf_counter()
    outcome = await sandbox.run(TASK)
    assert outcome.result == {"x": 2}, outcome
    return time.perf_counter() - started


async def saturated(sandbox: NativeSandbox) -> float:
    """Executions a second with many callers."""
    left = iter(range(CALLS))

    async def caller() -> None:
        for _ in left:
            await one(sandbox)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return CALLS / (time.perf_counter() - started)


async def measure() -> dict[str, float]:
    """All numbers, the two latencies taken turn by turn so that they meet the same noise."""
    sandbox = open_sandbox(SandboxConfig(max_size=CALLERS))
    await sandbox.start()
    bare, runs = [], []
    for _ in range(ROUNDS):
        bare.append(bare_python())
        await asyncio.sleep(PAUSE)
        runs.append(await one(sandbox))
    rate = await saturated(sandbox)
    await sandbox.close()
    return {
        "python_c_pass_p50_ms": statistics.median(bare) * 1000,
        "run_p50_ms": statistics.median(runs) * 1000,
        "run_over_python_c_pass": statistics.median(runs) / statistics.median(bare),
        "rate_at_32_per_s": rate,
    }


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in asyncio.run(measure()).items()}, indent=1))

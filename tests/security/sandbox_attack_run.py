"""Run every attack on a driver in this process' place and print the answers as JSON; with `docker` on that one.

A file of its own, so that it can be started as another user.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from sinas_server.backends.sandbox import Limits, Outcome, Sandbox, Task
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox
from tests.backends.sandbox.engine import open_docker
from tests.security.sandbox_attacks import Host, attacks, bait

PACKAGES = Path(np.__file__).parent.parent


def answer(outcome: Outcome) -> dict[str, object]:
    return {
        "result": outcome.result,
        "error": outcome.error,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "traceback": outcome.traceback,
        "ending": outcome.ending,
    }


async def run(host: Host) -> dict[str, object]:
    config = SandboxConfig(packages=(PACKAGES,), preload=("numpy", "requests"), min_size=2)
    sandbox: Sandbox = open_docker(config) if sys.argv[1:] == ["docker"] else open_sandbox(config)
    await sandbox.start()
    try:
        found: dict[str, dict[str, object]] = {}
        for attack in attacks(host):
            task = Task(attack.code, ("handler",), {}, {}, Limits(wall_seconds=attack.wall_seconds))
            found[attack.name] = answer(await sandbox.run(task))
        return {"level": sandbox.level.name, "answers": found}
    finally:
        await sandbox.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, bait(Path(directory)) as host:
        json.dump(asyncio.run(run(host)), sys.stdout)


if __name__ == "__main__":
    main()

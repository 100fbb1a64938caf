"""Executions cannot reach each other, other pools or what the same user has on the host, at any level."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.backends.sandbox import ordinary_user
from tests.security import neighbour_attack

ROOT = Path(__file__).parent.parent.parent
SIGUSR1 = 10


def run(mode: str, what: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="sinas-test-") as home:  # pytest's own directories are closed to others
        Path(home).chmod(0o755)
        script = [neighbour_attack.__file__, home, what]
        command = [sys.executable, *([] if mode == "own" else [ordinary_user.__file__, home]), *script]
        more = {"WITHOUT_NAMESPACES": "1"} if mode == "landlock" else {}
        environment = dict(os.environ, PYTHONPATH=str(ROOT), **more)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("mode", ["own", "ordinary", "landlock"])
def test_an_execution_reaches_no_neighbour_and_still_itself(mode: str) -> None:
    found = run(mode, "pools")
    assert (found["level"] == "landlock") == (mode == "landlock")
    assert found["reached"] == []
    assert found["victims"] == ["alive", "alive"]
    assert found["itself"] == [SIGUSR1, SIGUSR1, SIGUSR1, 0]


# What Landlock alone is in the way of: it refuses paths, also those of processes.
FILES_OF_PROCESSES = {"memory file", "environment", "descriptors", "working directory"}


def test_the_system_call_filter_holds_by_itself() -> None:
    """On kernels before 6.12 Landlock has no scope for signals."""
    reached = run("ordinary", "filter")["reached"]
    assert isinstance(reached, list)
    assert set(reached) <= FILES_OF_PROCESSES


def test_without_any_of_it_the_attempts_work() -> None:
    reached = run("ordinary", "nothing")["reached"]
    assert isinstance(reached, list)
    assert {"kill", "tgkill", "sigqueue", "pidfd", "a pipe's owner", "limits", "shared memory", "a datagram"} <= {
        *reached
    }

"""What functions ordinarily do works with every driver, and without namespaces as far as it needs nobody else."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.sandbox import ordinary_python, ordinary_user
from tests.backends.sandbox.engine import image, missing_engine
from tests.backends.sandbox.ordinary_python import EXERCISES

pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parent.parent.parent.parent


@dataclass(frozen=True)
class Report:
    mode: str
    results: dict[str, object]


@pytest.fixture(scope="module", params=["own", "landlock", "docker"])
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """What the exercises gave in one mode."""
    if request.param == "docker" and missing_engine() is not None:
        pytest.skip(missing_engine() or "")
    command, environment = [sys.executable, ordinary_python.__file__], dict(os.environ, PYTHONPATH=str(ROOT))
    with tempfile.TemporaryDirectory(prefix="sinas-test-") as home:  # pytest's own directories are closed to others
        Path(home).chmod(0o755)
        if request.param == "docker":
            image()
            command.append("docker")
        elif request.param == "landlock":
            command.insert(1, ordinary_user.__file__)
            command.insert(2, home)
            environment["WITHOUT_NAMESPACES"] = "1"
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    yield Report(request.param, json.loads(done.stdout))


@pytest.mark.parametrize("name", EXERCISES)
def test_it_works(report: Report, name: str) -> None:
    if report.mode == "landlock" and not EXERCISES[name].alone:
        pytest.skip("needs other processes, sockets, or changes of modes and times, which the level `landlock` has not")
    assert report.results[name] == EXERCISES[name].gives


def test_the_level(report: Report) -> None:
    assert (report.results["level"] == report.mode) == (report.mode != "own")

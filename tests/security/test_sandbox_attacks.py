"""Every attack fails: as the user who runs the tests, as an ordinary user, without namespaces, and in a container."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.sandbox import ordinary_user
from tests.backends.sandbox.engine import image, missing_engine
from tests.once import once
from tests.security import sandbox_attack_run
from tests.security.attack import NO_FILE
from tests.security.sandbox_attacks import Host, attacks

pytestmark = pytest.mark.timeout(400)
ATTACKS = {attack.name: attack for attack in attacks(Host(1, "x", Path("/x"), 2))}
ROOT = Path(__file__).parent.parent.parent
NAMESPACES = {"namespaces", "namespaces+cgroups"}
LEVELS = {
    "own": {"namespaces+cgroups"} if os.geteuid() == 0 else NAMESPACES,
    "ordinary": NAMESPACES,
    "landlock": {"landlock"},
    "docker": {"docker"},
}


@dataclass(frozen=True)
class Report:
    mode: str
    level: str
    answers: dict[str, dict[str, object]]


@pytest.fixture(scope="module", params=LEVELS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """All answers of one mode."""
    if request.param == "docker" and missing_engine() is not None:
        pytest.skip(missing_engine() or "")
    found = json.loads(once(tmp_path_factory, f"attacks-{request.param}", lambda: attacked(request.param)))
    return Report(request.param, found["level"], found["answers"])


def attacked(mode: str) -> str:
    with tempfile.TemporaryDirectory(prefix="sinas-test-") as home:  # pytest's own directories are closed to others
        Path(home).chmod(0o755)
        return output(mode, home)


def output(mode: str, home: str) -> str:
    command = [sys.executable, sandbox_attack_run.__file__]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if mode == "docker":
        image()  # not in the time of the attacks
        command.append("docker")
    elif mode != "own":
        command = [sys.executable, ordinary_user.__file__, home, sandbox_attack_run.__file__]
    if mode == "landlock":
        environment["WITHOUT_NAMESPACES"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False, timeout=390)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_level_is_the_strongest_that_works(report: Report) -> None:
    assert report.level in LEVELS[report.mode]


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_fails(report: Report, name: str) -> None:
    if ATTACKS[name].namespaces and report.mode == "landlock":
        pytest.skip("needs namespaces; what holds without them is told by the other attacks")
    if ATTACKS[name].only_native and report.mode == "docker":
        pytest.skip(ATTACKS[name].only_native)
    # In a container Landlock lets nothing be looked at, so that an attack fails before it begins.
    blind = report.mode == "docker" and NO_FILE(report.answers[name])
    assert blind or ATTACKS[name].holds(report.answers[name]), report.answers[name]

"""The bound of `bound.py`, in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

HANGS = """
import time, pytest

@pytest.fixture
def hanging():
    yield
    time.sleep(1000)

def test_it(hanging):
    assert False
"""


def test_a_teardown_that_hangs_after_a_failure_ends_the_run_with_its_stack(tmp_path: Path) -> None:
    file = tmp_path / "test_hangs.py"
    file.write_text(HANGS)
    command = [sys.executable, "-m", "pytest", "-p", "tests.bound", "-c", os.devnull, "-o", "timeout=2"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(file)],
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "Timeout (0:00:06)!" in done.stderr
    assert "in hanging" in done.stderr

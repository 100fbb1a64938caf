"""Every document, fuzzed against a running Sinas with an administrator's key: no input makes the server fail."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import Live, running

CASES = "4"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A Sinas of its own: the fuzzer changes and deletes whatever it finds."""
    with running(tmp_path_factory.mktemp("fuzzed") / "data") as live:
        yield live


@pytest.mark.timeout(400)
@pytest.mark.parametrize("document", ["openapi.json", "api/v1/openapi.json", "adapters/openai/openapi.json"])
def test_no_input_is_a_server_error(own: Live, document: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{own.url}/{document}"]
    options = ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", CASES]
    options += ["-H", f"Authorization: Bearer {own.key}", "--request-timeout", "60", "--no-color"]
    # Deleting the key or rights that the run itself uses would end it: the fuzzer only sees that they are refused.
    options += ["--exclude-path-regex", "/(roles|users|api-keys)/.+"]
    done = subprocess.run(command + options, capture_output=True, text=True, cwd=tmp_path, timeout=390, check=False)
    assert "generated" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout[-6000:]

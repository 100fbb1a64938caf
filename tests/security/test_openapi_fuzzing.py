"""Every document, fuzzed against a running Sinas with an administrator's key: no input makes the server fail."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinas_server.app import create_app
from sinas_server.roles import open_runtime
from sinas_server.settings import Settings
from tests.documents import documents
from tests.live import Live, running

CASES = os.environ.get("FUZZ_CASES", "2")
"""Generated at random for each operation, besides those that cover every field of it: these are the most."""
SEED = os.environ.get("FUZZ_SEED", "1")
"""A run judges the code, not the draw: who wants to find more asks for another seed, and for more cases."""
HERE = Path(__file__).parent
SETTINGS = Settings(_env_file=None)
DOCUMENTS = sorted(documents(create_app(SETTINGS, lambda: open_runtime(SETTINGS, "test"))))
"""Where the applications with documents are mounted."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A Sinas of its own: the fuzzer changes and deletes whatever it finds."""
    with running(tmp_path_factory.mktemp("fuzzed") / "data", SANDBOX_MAX_SIZE="4") as live:
        yield live


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mounted_at", DOCUMENTS)
def test_no_input_is_a_server_error(
    own: Live, mounted_at: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    document = f"{own.url}{mounted_at}/openapi.json"
    command = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(HERE / "schemathesis.toml")]
    command += ["run", document]
    options = ["--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--max-examples", CASES]
    options += ["--seed", SEED]
    options += ["-H", f"Authorization: Bearer {own.key}", "--request-timeout", "60", "--no-color"]
    # Deleting the key or rights that the run itself uses would end it: the fuzzer only sees that they are refused.
    options += ["--exclude-path-regex", "/(roles|users|api-keys)/.+"]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.security.fuzz_hooks",
        "PYTHONPATH": str(HERE.parents[1]),
        # Hypothesis takes seconds for its tables of characters, and keeps them here.
        "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path_factory.getbasetemp() / "hypothesis"),
    }
    done = subprocess.run(
        command + options, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=390, check=False
    )
    assert "generated" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout[-6000:]

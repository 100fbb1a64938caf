"""`make demo`: the main job of the platform, as the README shows it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.live import clean_environment, free_port, sinas

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """What the demo printed, and the environment in which its server runs."""
    data = tmp_path_factory.mktemp("demo") / "data"
    environment = {**clean_environment(), "SINAS_DATA_DIR": str(data), "PORT": str(free_port())}
    done = subprocess.run(
        [str(ROOT / "scripts" / "demo")], env=environment, capture_output=True, text=True, timeout=110, check=False
    )
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield done.stdout, environment
    finally:
        sinas("down", environment=environment)


def test_it_answers_and_leaves_the_server_running(demo: tuple[str, dict[str, str]]) -> None:
    printed, environment = demo
    assert "Order 1042 (3 × Merino socks (3 pairs)) was delivered on 2026-10-19 by UPS." in printed
    assert httpx2.get(f"http://localhost:{environment['PORT']}/health", timeout=60).status_code == 200


def test_the_readme_shows_its_output(demo: tuple[str, dict[str, str]]) -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```console\n\$ make demo\n(.*?)```", readme, re.DOTALL)
    assert shown, "the README has no output of `make demo`"

    def steady(text: str) -> list[str]:
        """Without what differs from run to run: ids and the port."""
        return [
            re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|localhost:\d+", "…", line) for line in text.splitlines()
        ]

    # The results of parallel calls come in any order.
    assert sorted(steady(demo[0])) == sorted(steady(shown[1]))

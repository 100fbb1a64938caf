"""Sandbox images that do not fit this platform: of another version, or with another Python."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinas_server.backends.sandbox import PackageSet, SandboxUnavailable
from sinas_server.backends.sandbox.config import SandboxConfig
from tests.backends.sandbox.conftest import task
from tests.backends.sandbox.engine import docker, image, missing_engine, open_docker
from tests.backends.sandbox.test_docker import ONE, started

pytestmark = pytest.mark.skipif(missing_engine() is not None, reason=missing_engine() or "")


async def test_an_image_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {image()}\nRUN echo '# changed' >> /opt/sinas/guest/frames.py\n")
    name = f"sinas-sandbox-test-changed:{os.getpid()}"
    docker("build", "--tag", name, str(tmp_path))
    try:
        with pytest.raises(SandboxUnavailable, match="the sandbox image is of another version"):
            await open_docker(SandboxConfig(min_size=1), image=name).start()
    finally:
        docker("image", "rm", name)


@pytest.fixture
def other_python(tmp_path: Path) -> Iterator[str]:
    """An image whose interpreter says that it is another one; it is otherwise ours."""
    shown = json.loads(docker("inspect", image()))[0]
    entry = shown["Config"]["Entrypoint"]
    claim = "import importlib.machinery as m; m.EXTENSION_SUFFIXES[:] = ['.cpython-399-x86_64-linux-gnu.so']; "
    (tmp_path / "Dockerfile").write_text(f"FROM {image()}\nENTRYPOINT {json.dumps([*entry[:-1], claim + entry[-1]])}\n")
    name = f"sinas-sandbox-test-python:{os.getpid()}"
    docker("build", "--tag", name, str(tmp_path))
    yield name
    docker("image", "rm", name)


async def test_packages_are_not_given_to_another_interpreter(other_python: str, tmp_path: Path) -> None:
    packages = PackageSet("some-hash", tmp_path)
    reason = r"its interpreter is cpython-399-.*, but approved packages are installed for cpython-3.*BASE=python:3\."
    async with started(SandboxConfig(min_size=1, min_idle=0, max_size=2), image=other_python) as sandbox:
        assert any("cpython-399" in missing for missing in sandbox.level.missing), "said at the start"
        with pytest.raises(SandboxUnavailable, match=reason):
            await sandbox.use(packages)
        assert (await sandbox.run(task(ONE))).result == 1, "functions that import none go on"

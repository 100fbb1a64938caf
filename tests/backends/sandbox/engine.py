"""A Docker engine for tests and the sandbox image in it; tests that need one are skipped with the reason without it."""

import fcntl
import functools
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.docker import DockerConfig, DockerSandbox
from sinas_server.backends.sandbox.guest import wire

ROOT = Path(__file__).parent.parent.parent.parent
BUILD_SECONDS = 1200
"""With all dependencies from the network, on a machine that tests keep busy."""
BASE = "python:3.11-slim"


def docker(*arguments: str, timeout: float = 60) -> str:
    """What `docker ...` prints. Fails the test if it fails."""
    environment = dict(os.environ, DOCKER_BUILDKIT="0")
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=timeout
    )
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@functools.cache
def missing_engine() -> str | None:
    """Why there is no engine that can build the image."""
    if shutil.which("docker") is None:
        return "there is no docker command here"
    if not _works("version"):
        return "no Docker engine answers"
    if not _works("image", "inspect", BASE) and not _works("pull", "--quiet", BASE):
        return f"the Docker engine has no image {BASE} and cannot pull it"
    return None


def _works(*arguments: str) -> bool:
    done = subprocess.run(["docker", *arguments], capture_output=True, check=False, timeout=BUILD_SECONDS)
    return done.returncode == 0


@functools.cache
def image() -> str:
    """The name of the sandbox image of this source, built as a user would build it."""
    name = f"sinas-sandbox-test:{wire.fingerprint()}"
    if not docker("image", "ls", "--quiet", name):
        build("deploy/sandbox.Dockerfile", name)
    return name


def build(file: str, name: str) -> None:
    """Build an image of this source. One process at a time: another one that wants it finds the layers made."""
    with Path(tempfile.gettempdir(), "sinas-test-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        docker("build", "--file", file, "--tag", name, ".", timeout=BUILD_SECONDS)


def open_docker(config: SandboxConfig, **changes: str) -> DockerSandbox:
    """A sandbox of containers, each with an installation and worker of its own. Skips the test without an engine."""
    reason = missing_engine()
    if reason is not None:
        pytest.skip(reason)
    chosen = {"image": image(), "installation": f"test-{secrets.token_hex(4)}"} | changes
    return DockerSandbox(config, DockerConfig(**chosen))

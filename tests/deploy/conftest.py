"""The server image of this source, and a platform that runs from it on a real PostgreSQL and Valkey of this machine."""

import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from cryptography.fernet import Fernet

from sinas_server.backends.embedded import embedded_servers
from tests.backends.sandbox.engine import build, docker, image, missing_engine
from tests.live import free_port

SOCKET = "/var/run/docker.sock"
AS_COMPOSE = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""How `deploy/compose.yaml` runs every part."""
START_SECONDS = 120.0
CODE = re.compile(r"\b(\d{6})\b")


@pytest.fixture(scope="session")
def server_image() -> str:
    """Built as a user would build it; the layers with the dependencies are kept by the engine."""
    reason = missing_engine()
    if reason is not None:
        pytest.skip(reason)
    build("deploy/server.Dockerfile", "sinas-server-test")
    return "sinas-server-test"


@dataclass
class Deployment:
    """Containers of the server image in the network of this machine, with one data volume."""

    image: str
    environment: dict[str, str]
    mark: str = field(default_factory=lambda: f"test-{secrets.token_hex(4)}")

    def start(self, role: str, command: str, *options: str) -> None:
        """Run one part as Compose would."""
        variables = [part for name, value in self.environment.items() for part in ("--env", f"{name}={value}")]
        volume = ("--volume", f"{self.mark}:/var/lib/sinas")
        place = ("--detach", "--network", "host", "--name", f"{self.mark}-{role}")
        docker("run", *place, *AS_COMPOSE, *volume, *variables, *options, self.image, *command.split())

    def logs(self, role: str) -> str:
        command = ["docker", "logs", f"{self.mark}-{role}"]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout

    def remove(self) -> None:
        for name in docker("ps", "--all", "--quiet", "--filter", f"name={self.mark}-").split():
            docker("rm", "--force", name)
        docker("volume", "rm", "--force", self.mark)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['PORT']}"


def _log_in(deployment: Deployment, client: httpx2.Client) -> None:
    """As the administrator, whose code is in the log as there is no mail server."""
    session = client.post("/auth/login", json={"email": "admin@example.com"}).json()["session_id"]
    until = time.monotonic() + START_SECONDS
    while not (found := CODE.findall(deployment.logs("scheduler"))):
        assert time.monotonic() < until, deployment.logs("scheduler")
        time.sleep(0.2)
    answer = client.post("/auth/verify-otp", json={"session_id": session, "otp_code": found[-1]})
    assert answer.status_code == 200, answer.text
    client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


@pytest.fixture(scope="session")
def deployed(server_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, httpx2.Client]]:
    """API, scheduler and function worker, each a container; functions run in containers beside them."""
    root: Path = tmp_path_factory.mktemp("with-a-path-too-long-for-a-socket-so-that-servers-listen-on-the-loopback")
    with embedded_servers(root / "and-still-longer") as (database_url, redis_url):
        assert "127.0.0.1" in database_url
        assert "127.0.0.1" in redis_url
        deployment = Deployment(
            server_image,
            {
                "DATABASE_URL": database_url,
                "REDIS_URL": redis_url,
                "SECRET_KEY": secrets.token_hex(32),
                "ENCRYPTION_KEY": Fernet.generate_key().decode(),
                "SUPERADMIN_EMAIL": "admin@example.com",
                "PORT": str(free_port()),
                "SINAS_HOST": "127.0.0.1",
                "UVICORN_WORKERS": "1",
                "QUEUE_WORKER_REPLICAS": "1",
                "SANDBOX_DRIVER": "docker",
                "SANDBOX_IMAGE": image(),
                "SANDBOX_MIN_SIZE": "1",
                "DOCKER_HOST": f"unix://{SOCKET}",
            },
        )
        try:
            deployment.start("api", "api")
            until = time.monotonic() + START_SECONDS
            while not _healthy(deployment.url):
                assert time.monotonic() < until, deployment.logs("api")
                time.sleep(0.2)
            deployment.start("scheduler", "scheduler")
            socket = ("--volume", f"{SOCKET}:{SOCKET}", "--group-add", str(Path(SOCKET).stat().st_gid))
            deployment.start("functions", "worker functions", *socket)
            with httpx2.Client(base_url=deployment.url, timeout=90) as client:
                _log_in(deployment, client)
                yield deployment, client
        finally:
            deployment.remove()


def _healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=2, verify=False).status_code == 200
    except httpx2.HTTPError:
        return False

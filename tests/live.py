"""A real Sinas, started by its own command in a process of its own, as its users run it."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

START_SECONDS = 90.0


@dataclass(frozen=True)
class Live:
    """A running Sinas."""

    data: Path
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The administrator's API key."""
        return (self.data / "admin-key").read_text().strip()

    def client(self, key: str | None = None) -> httpx2.Client:
        """A client with the administrator's key, or another."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=90, verify=False)

    @property
    def environment(self) -> dict[str, str]:
        """What makes the `sinas` command talk to this server."""
        return {**clean_environment(), "SINAS_DATA_DIR": str(self.data), "PORT": str(self.port)}


def clean_environment() -> dict[str, str]:
    """This process's environment without what configures a Sinas, slows it down or reveals a model's key.

    No packages are installed: that would need the network.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SINAS_", "DATABASE_", "REDIS_", "SMTP_", "COV_"))
        and name not in ("PORT", "SECRET_KEY", "ENCRYPTION_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")
        and name != "PYTHONDONTWRITEBYTECODE"
    }
    return {**kept, "ALLOW_PACKAGE_INSTALLATION": "false"}


def free_port() -> int:
    """A port that nobody listens on now, and that the system gives to nobody who asks for any."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def sinas(
    *arguments: str, environment: Mapping[str, str], cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the `sinas` command to its end."""
    command = [str(Path(sys.executable).parent / "sinas"), *arguments]
    return subprocess.run(
        command, env=dict(environment), cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def start(data: Path, port: int, **variables: str) -> Live:
    """`sinas up`, as soon as it is healthy."""
    data.parent.mkdir(parents=True, exist_ok=True)
    log = data.with_name(f"{data.name}.log")
    environment = {**clean_environment(), "SINAS_DATA_DIR": str(data), "PORT": str(port), **variables}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "sinas"), "up"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=data.parent,
            start_new_session=True,
        )
    live = Live(data, port, process, log)
    until = time.monotonic() + START_SECONDS
    while not _healthy(live):
        if process.poll() is not None or time.monotonic() > until:
            stop(live)
            raise RuntimeError(f"sinas up did not become healthy:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)
    return live


def _healthy(live: Live) -> bool:
    try:
        return httpx2.get(f"{live.url}/health", timeout=2, verify=False).status_code == 200
    except httpx2.HTTPError:
        return False


def stop(live: Live) -> int:
    """Ctrl-C, and its exit status."""
    if live.process.poll() is None:
        live.process.send_signal(signal.SIGINT)
    try:
        return live.process.wait(30)
    except subprocess.TimeoutExpired:
        live.process.kill()
        return live.process.wait(10)


@contextmanager
def running(data: Path, **variables: str) -> Iterator[Live]:
    """`sinas up` while the block runs."""
    live = start(data, free_port(), **variables)
    try:
        yield live
    finally:
        stop(live)

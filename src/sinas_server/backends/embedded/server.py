"""A server program as our foreground child: launched through `launch.py`, awaited, asked to stop."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from sinas_server.backends.embedded.datadir import DataDir
from sinas_server.backends.embedded.process import EmbeddedError, OnEvent, describe_exit, log_event, pause, signalled

LAUNCHER = Path(__file__).with_name("launch.py")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
LONGEST_LOG = 10 << 20  # bytes
STOP_GRACE = 20.0  # seconds that a server gets to write its last state


def launched(arguments: Sequence[str], death_signal: signal.Signals, *, userns: bool) -> list[str]:
    """The command that runs `arguments` as a child which gets `death_signal` when the calling thread ends."""
    mode = "userns" if userns else "plain"
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(int(death_signal)), mode, *arguments]


class Server(ABC):
    """One bundled server in a data directory; a `Unit` whose start has two halves, so that the caller works meanwhile.

    Its process has a session of its own, dies with the thread that spawned it, and writes to `logs/NAME.log`.
    """

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]
    """What the process gets when we die."""
    stop_signal: ClassVar[signal.Signals]
    """What asks the process to end in order."""

    def __init__(self, data: DataDir, *, durable: bool = True, on_event: OnEvent = log_event) -> None:
        self.data = data
        self.durable = durable
        self.event = on_event
        self._process: subprocess.Popen[bytes] | None = None
        self._log = data.logs / f"{self.name}.log"
        self._log_start = 0
        self._spawned_at = 0.0

    @abstractmethod
    def spawn(self) -> None:
        """Starts the process and returns; raises `EmbeddedError` when it cannot work at all."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether clients are served now, by our process."""

    @property
    def pid(self) -> int:
        """The server's pid, 0 when it never started."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Spawns the server and waits until it serves; raises `EmbeddedError`."""
        self.spawn()
        self.wait_ready()

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Returns when clients are served; raises `EmbeddedError` with the end of the log when that fails.

        The default of `timeout` (seconds) leaves time to replay a log after a crash.
        """
        until = time.monotonic() + timeout
        while not self.ready():
            status = self.poll()
            if status is not None:
                raise EmbeddedError(f"{self.name} {describe_exit(status)} while starting:\n{self.log_tail()}")
            if time.monotonic() > until:
                self.kill()
                raise EmbeddedError(f"{self.name} was not ready after {timeout:.0f} s; its log is {self._log}")
            pause(0.01)
        self.event(self.name, f"ready in {time.monotonic() - self._spawned_at:.2f} s")

    def poll(self) -> int | None:
        """None while the server runs, then its exit status; 0 when it never started."""
        return self._process.poll() if self._process else 0

    def terminate(self) -> None:
        """Asks the server to end in order; does nothing when it has ended."""
        if self.poll() is None:
            signalled(self.pid, self.stop_signal)

    def kill(self) -> None:
        """Ends the server without a last write; the next start recovers."""
        if self._process and self.poll() is None:
            signalled(self.pid, self.death_signal)
            try:
                self._process.wait(6)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def serve(self, arguments: Sequence[str]) -> None:
        """Launches the server program; for `spawn`."""
        self._spawned_at = time.monotonic()
        self._process = self._launch(arguments, subprocess.DEVNULL)

    def run_to_end(self, arguments: Sequence[str], stdin: bytes = b"") -> None:
        """Runs a program of the server until it ends; raises `EmbeddedError` with its output when it fails."""
        process = self._launch(arguments, subprocess.PIPE)
        process.communicate(stdin)
        if process.returncode:
            raise EmbeddedError(f"{Path(arguments[0]).name} failed:\n{self.log_tail()}")

    def user_namespace(self) -> bool:
        """Whether the program must see us as another user than we are."""
        return False

    def log_tail(self) -> str:
        """What was logged since the last launch, its last 2000 bytes."""
        with self._log.open("rb") as file:
            file.seek(max(self._log_start, self._log.stat().st_size - 2000))
            return file.read().decode(errors="replace").strip()

    def _launch(self, arguments: Sequence[str], stdin: int) -> "subprocess.Popen[bytes]":
        if self._log.exists() and self._log.stat().st_size > LONGEST_LOG:
            self._log.replace(self._log.with_suffix(".log.1"))
        command = launched(arguments, self.death_signal, userns=self.user_namespace())
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(  # noqa: S603 - every argument is ours
                command, stdin=stdin, stdout=log, stderr=log, env=ENVIRONMENT, cwd="/"
            )


@contextmanager
def running(servers: Sequence[Server], *, orderly: bool = True) -> Iterator[None]:
    """Spawns servers and stops them however the block is left; the caller calls `wait_ready` on each inside it."""
    try:
        for server in servers:
            server.spawn()
        yield
    finally:
        if orderly:
            for server in servers:
                server.terminate()
            until = time.monotonic() + STOP_GRACE
            while any(server.poll() is None for server in servers) and time.monotonic() < until:
                time.sleep(0.02)
        for server in servers:
            server.kill()

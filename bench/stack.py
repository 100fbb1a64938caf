"""The processes of a run: the real stack as `sinas up` starts it, the references beside it, and their end."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from bench.client import environment
from sinas_server.backends.embedded.datadir import DataDir, free_port
from sinas_server.backends.embedded.memory import pss_total
from sinas_server.backends.embedded.postgres import Postgres
from sinas_server.backends.embedded.process import descendants

ROOT = Path(__file__).parent.parent
PATIENCE = 180.0


def end(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> None:
    """Ends a process that we started, in order or by force."""
    process.send_signal(number)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def started(command: Sequence[str], environ: Mapping[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """Runs `python -m ...` beside the stack while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end(process)


def line_of(stream: IO[str] | None) -> str:
    """The next line that a process prints."""
    line = stream.readline() if stream else ""
    if not line:
        raise RuntimeError("a process of the benchmark ended early")
    return line.strip()


def answer_of(process: "subprocess.Popen[str]", line: str) -> str:
    """The line that a process prints after it read ours."""
    assert process.stdin
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return line_of(process.stdout)


def await_http(port: int, path: str, process: "subprocess.Popen[str]") -> None:
    """Returns as soon as the path is answered with 200."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.002)
        finally:
            connection.close()
    raise RuntimeError(f"nothing answers on port {port}")


def _processor_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


class Stack:
    """A stack in a data directory of its own, which is started and stopped several times."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        self.port = free_port()
        self.log = directory / "stack.log"
        self.environ = environment(SINAS_DATA_DIR=str(self.data), PORT=str(self.port))
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> float:
        """Starts it; the seconds until `GET /health` was answered."""
        with self.log.open("a") as log:
            began = time.perf_counter()
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("sinas")), "up"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                env=self.environ,
                cwd=self.data.parent,
                start_new_session=True,
            )
        try:
            await_http(self.port, "/health", self._process)
        except RuntimeError:
            sys.stderr.write(self.log.read_text()[-3000:])
            raise
        return time.perf_counter() - began

    def stop(self) -> None:
        """Stops it in order."""
        if self._process:
            end(self._process, signal.SIGINT)
            self._process = None

    def memory(self) -> dict[str, int]:
        """Bytes of proportional set size by process."""
        assert self._process
        return pss_total(self._process.pid)

    def processor_seconds(self) -> float:
        """What the stack has spent so far, the servers included; of processes that live."""
        assert self._process
        return sum(map(_processor_seconds, (self._process.pid, *descendants(self._process.pid))))

    @property
    def key(self) -> str:
        """The administrator's API key."""
        return self.data.joinpath("admin-key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        """Those of a call by the administrator."""
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def database_url(self) -> str:
        """For SQLAlchemy with psycopg."""
        return Postgres(DataDir(self.data)).url()

    def call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, JsonValue]:
        """The JSON object that answers a call by the administrator."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {**self.headers, "Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer!r}")
        found: dict[str, JsonValue] = json.loads(answer)
        return found

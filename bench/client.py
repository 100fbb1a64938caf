"""Drives the load generator: the C program beside it where there is a compiler, otherwise its twin in Python."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE = 600.0
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def environment(**more: str) -> dict[str, str]:
    """Ours without what would change the product: settings, keys of providers, Python's own switches."""
    return {key: value for key, value in os.environ.items() if key in KEPT} | more


@dataclass(frozen=True)
class Sample:
    """What one run of the generator saw. Times in microseconds."""

    marked: list[float]
    """Until the awaited part of each answer came."""
    ended: list[float]
    """Until each answer was complete."""
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.ended) / self.seconds


def request(method: str, path: str, headers: Mapping[str, str] | None = None, body: object = None) -> bytes:
    """A whole HTTP/1.1 request."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Accept: */*"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if content:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Client:
    """The generator; `compiled` says whether it is the C program."""

    def __init__(self, directory: Path) -> None:
        """Compiles into `directory`."""
        self._requests = directory / "requests"
        self._command = [sys.executable, "-m", "bench.python_client"]
        self.compiled = False
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler:
            program = directory / "client"
            subprocess.run([compiler, "-O2", "-o", str(program), str(HERE / "client.c")], check=True)
            self._command = [str(program)]
            self.compiled = True

    def load(self, port: int, requests: Sequence[bytes], mark: str, connections: int, seconds: float) -> Sample:
        """Keeps so many connections busy for so long."""
        return self._http(port, requests, mark, connections, (seconds, 0))

    def ask(self, port: int, requests: Sequence[bytes], mark: str, count: int) -> Sample:
        """One request after the other on one connection."""
        return self._http(port, requests, mark, 1, (0, count))

    def spawn(self, count: int, command: Sequence[str]) -> Sample:
        """Runs a program to its end, one time after the other."""
        return self._run(["spawn", str(count), *command])

    def _http(
        self, port: int, requests: Sequence[bytes], mark: str, connections: int, limits: tuple[float, int]
    ) -> Sample:
        self._requests.write_bytes(b"".join(each + b"\0" for each in requests))
        numbers = [port, connections, *limits]
        return self._run(["http", *map(str, numbers), mark, str(self._requests)])

    def _run(self, arguments: Sequence[str]) -> Sample:
        done = subprocess.run(
            [*self._command, *arguments],
            stdout=subprocess.PIPE,
            check=True,
            timeout=PATIENCE,
            env=environment(),
            cwd=HERE.parent,
        )
        return Sample(**json.loads(done.stdout))

"""Runs `stack.py` as a process of its own and looks at it from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.request import urlopen

import psycopg
import redis

from sinas_server.backends.embedded.process import descendants
from tests.live import free_port

PROGRAM = Path(__file__).with_name("stack.py")
PATIENCE = 60.0  # seconds; only a broken stack needs them

T = TypeVar("T")


def eventually(question: Callable[[], T | None]) -> T:
    """The first answer that is true; fails after a long time."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if answer := question():
                return answer
        except (OSError, psycopg.OperationalError, redis.ConnectionError):
            if time.monotonic() > until:
                raise
        assert time.monotonic() < until, f"never came true: {question}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass(frozen=True)
class Worker:
    """A worker's process and those it started."""

    pid: int
    started: list[int]


class Stack:
    """One run of the program in a data directory."""

    def __init__(
        self, root: Path, *arguments: str, port: int | None = None, uid: int | None = None, nohup: int = 0
    ) -> None:
        self.root = root
        self.port = port or free_port()
        if (root / "ready.json").exists():
            (root / "ready.json").unlink()
        environment = dict(os.environ)
        python = sys.executable
        if uid is not None:
            python = "/usr/bin/python3"
            environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [*(["nohup"] if nohup else []), python, str(PROGRAM), str(root), str(self.port), *arguments],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
        )

    def ready(self) -> "Stack":
        """Waits until the API answered."""
        eventually(lambda: (self.root / "ready.json").exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.ended()
        return self

    def ended(self) -> str:
        """Waits for the end of the program; what it wrote."""
        return self.process.communicate(timeout=PATIENCE)[1]

    def stop(self, number: int = signal.SIGINT) -> str:
        """Signals the supervisor and waits for its end; what it wrote."""
        self.process.send_signal(number)
        return self.ended()

    def pids(self) -> list[int]:
        """Everything below the supervisor."""
        return descendants(self.process.pid)

    def pid(self, name: str) -> int:
        """The pid of a direct child by its short name, such as `postgres`."""
        for pid in self.pids():
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            if f"({name})" in stat and int(stat.rpartition(")")[2].split()[1]) == self.process.pid:
                return pid
        raise ProcessLookupError(name)

    def health(self) -> int:
        """The pid of the API that answered."""
        with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=PATIENCE) as answer:
            return int(answer.read())

    def worker(self, slot: int) -> "Worker":
        """What a worker told about itself."""
        return Worker(**json.loads((self.root / f"worker-{slot}.json").read_text()))

    def database(self) -> "psycopg.Connection[tuple[object, ...]]":
        """A connection that commits each statement."""
        address = json.loads((self.root / "ready.json").read_text())["database"].replace("+psycopg", "")
        return psycopg.connect(address, autocommit=True)

    def valkey(self) -> redis.Redis:
        """A client of the Valkey."""
        return redis.Redis.from_url(json.loads((self.root / "ready.json").read_text())["redis"])

    def kill(self) -> None:
        """Ends whatever is left of the program."""
        for pid in [*self.pids(), self.process.pid]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.communicate()

"""The process that has the product ready and forks the stack's supervisors, as seen from outside."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from sinas_server.backends.embedded.process import descendants, signalled
from tests.live import clean_environment

REPOSITORY = Path(__file__).parents[2]


class Forks:
    """One supervisor at a time, in a directory and on a port; all of them end with this process."""

    def __init__(self, root: Path, port: int) -> None:
        with (root / "stack.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.stack", str(root), str(port), str(os.getpid())],
                cwd=REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean_environment(),
                bufsize=0,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self.pid = 0
        """The last supervisor's."""
        self._ended = True

    def fork(self) -> None:
        """A new supervisor, when the last has ended."""
        self._orders.write(b"+")
        pid = self._answers.readline()
        assert pid, "it has ended"
        self.pid, self._ended = int(pid), False

    def has_ended(self, seconds: float = 0.0) -> bool:
        """Whether the last supervisor and all below it have ended, or do within this time."""
        if not self._ended and select.select([self._answers], [], [], seconds)[0]:
            self._answers.readline()
            self._ended = True
        return self._ended

    def stop(self, seconds: float) -> None:
        """End everything; fails if the supervisor and what is below it do not end by themselves in this time."""
        below = descendants(self._process.pid)
        if not self.has_ended():
            signalled(self.pid, signal.SIGINT)
        orderly = self.has_ended(seconds)
        for pid in () if orderly else below:
            signalled(pid, signal.SIGKILL)
        self._orders.close()
        self._process.wait(seconds)
        self._answers.close()
        assert orderly, "the stack does not end by itself"

"""Inside the processes of the stack: points that work passes, and what a test has planned to happen at one of them.

A plan is a file, `plan.json` in the stack's directory (`Plan`). The n-th time that a process passes the point the plan
is taken away, so that it happens once, its actions are done there and then, and it becomes `fired.json`. Every point
passed is a line of `trace.log`. The action `hold` has the process stand still there while there is a file `held`.
While a process works it has a file in `busy`, under its pid.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import redis

from sinas_server.backends.embedded.process import descendants, parents

COMMANDS = {"postgres": "postgres", "valkey": "valkey-server"}


class Plan(TypedDict):
    """What is to happen where, once."""

    number: int
    point: str
    nth: int
    actions: list[str]


class LostAnswerError(Exception):
    """The action `lose`: what was asked for was done, and the answer got lost on its way."""


class Points:
    """The points of one process."""

    def __init__(self, root: Path, redis_url: str) -> None:
        self._plan = root / "plan.json"
        self._fired = root / "fired.json"
        self._held = root / "held"
        self._busy = root / "busy" / str(os.getpid())
        self._busy.unlink(missing_ok=True)  # of one that was killed and had the same pid
        self._tasks = 0
        self._trace = os.open(root / "trace.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._redis_url = redis_url
        self._seen = (0, 0)  # of which plan, how often its point was passed

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have the process count as busy meanwhile."""
        self._tasks += 1
        if self._tasks == 1:
            self._busy.touch()
        try:
            yield
        finally:
            self._tasks -= 1
            if not self._tasks:
                self._busy.unlink()

    def planned(self) -> str | None:
        """The point of the plan that has not happened yet."""
        plan = self._read()
        return plan["point"] if plan else None

    def reach(self, point: str) -> None:
        """Pass a point. Raises `LostAnswerError` where that is planned."""
        os.write(self._trace, f"{point}\n".encode())
        plan = self._read()
        if plan is None or plan["point"] != point:
            return
        count = self._seen[1] + 1 if self._seen[0] == plan["number"] else 1
        self._seen = (plan["number"], count)
        if count != plan["nth"]:
            return
        try:
            firing = self._plan.rename(self._plan.with_name("firing.json"))
        except FileNotFoundError:
            return  # another process passes it at the same time, or the test has just forgotten it
        supervisor, last = os.getppid(), (plan["actions"] or ["nothing"])[-1]
        for action in plan["actions"]:
            if action == "flush":
                with redis.Redis.from_url(self._redis_url) as client:
                    client.flushall()
            elif action not in ("lose", "hold", "supervisor", comm(os.getpid()).removeprefix("sinas-")):
                kill(supervisor, action)
        firing.rename(self._fired)
        while last == "hold" and self._held.exists():
            time.sleep(0.005)
        if last == "lose":
            raise LostAnswerError
        if last == "supervisor" or f"sinas-{last}" == comm(os.getpid()):
            kill(supervisor, last)
            time.sleep(60)  # until it is felt

    def _read(self) -> Plan | None:
        try:
            plan: Plan = json.loads(self._plan.read_text())
        except FileNotFoundError:
            return None
        return plan


def kill(supervisor: int, name: str) -> None:
    """Kill -9 one of the stack's processes, of a server its own children too; returns when they are dead."""
    pids = [supervisor] if name == "supervisor" else pids_of(supervisor, name)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    while any(comm(pid) for pid in pids):
        time.sleep(0.001)


def pids_of(supervisor: int, name: str) -> list[int]:
    """The process of a role, or all processes of a server; what a role has started must die with it."""
    wanted = COMMANDS.get(name, f"sinas-{name}")
    mine = [pid for pid, parent in parents().items() if parent == supervisor and comm(pid) == wanted]
    return [found for pid in mine for found in (pid, *(descendants(pid) if name in COMMANDS else ()))]


def comm(pid: int) -> str:
    """The short name of a process, empty when it is dead, also while nobody has taken note of that."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if rest.split()[0] in ("Z", "X") else name.partition("(")[2]

"""Keeps servers and roles alive: starts them in order, restarts what dies, stops them in order.

One thread, no event loop, no work while nothing happens: it sleeps in sigtimedwait(2) until a child or the user calls.
"""

import errno
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sinas_server.backends.embedded.process import (
    PR_SET_CHILD_SUBREAPER,
    STOP_SIGNALS,
    EmbeddedError,
    InterruptedStartError,
    OnEvent,
    Unit,
    describe_exit,
    log_event,
    parents,
    prctl,
    signalled,
)
from sinas_server.backends.embedded.role import Role, RoleProcess
from sinas_server.backends.embedded.server import STOP_GRACE

FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0  # seconds before a restart; doubled each time
READY_POLL = 0.1  # seconds between questions whether the stack is ready
HEALTHY_AFTER = 30.0  # seconds of life that make the next delay the first again
WATCHED = STOP_SIGNALS | {signal.SIGCHLD}


@dataclass
class _Watch:
    """A unit, the seconds it gets to end, and when it may start again."""

    unit: Unit
    grace: float
    started: float = 0.0
    delay: float = FIRST_DELAY
    due: float | None = None

    def fell(self, now: float) -> float:
        """Notes a death and plans the restart; the seconds until then."""
        if now - self.started > HEALTHY_AFTER:
            self.delay = FIRST_DELAY
        wait, self.delay = self.delay, min(self.delay * 2, LONGEST_DELAY)
        self.due = now + wait
        return wait


class Supervisor:
    """Runs roles over servers that are ready already, until SIGINT, SIGTERM or SIGHUP.

    Everything the roles need is imported before `run`; no thread or event loop may exist then. Any other child of this
    process counts as an orphan of a role and is killed. `close_in_roles`: descriptors that roles must not inherit.
    """

    def __init__(
        self,
        servers: Sequence[Unit],
        roles: Sequence[Role],
        *,
        on_event: OnEvent = log_event,
        is_ready: Callable[[], bool] = lambda: True,
        on_ready: Callable[[], None] = lambda: None,
        close_in_roles: Sequence[int] = (),
    ) -> None:
        self._event = on_event
        self._is_ready = is_ready
        self._on_ready = on_ready
        self._servers = [_Watch(server, STOP_GRACE, started=time.monotonic()) for server in servers]
        self._roles = [
            _Watch(RoleProcess(role, slot, close=close_in_roles), role.grace_seconds)
            for role in roles
            for slot in range(role.count)
        ]

    def run(self) -> None:
        """Starts the roles, keeps everything alive, and returns after a clean stop.

        `is_ready` is asked until it says yes, then `on_ready` is called, once.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _watched())
        try:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
            gc.collect()
            gc.freeze()  # pages of what was imported stay shared with every role
            for watch in self._roles:
                self._start(watch)
            self._watch()
        except InterruptedStartError:
            pass
        finally:
            self._stop()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def _units(self) -> list[_Watch]:
        return [*self._servers, *self._roles]

    def _watch(self) -> None:
        ready = False
        while True:
            now = time.monotonic()
            for watch in self._units:
                self._tend(watch, now)
            self._reap_orphans()
            if not ready and (ready := self._is_ready()):
                self._on_ready()
            due = [watch.due for watch in self._units if watch.due is not None]
            due += [] if ready else [now + READY_POLL]
            if _wait(min(due) - time.monotonic() if due else None) in STOP_SIGNALS:
                return

    def _tend(self, watch: _Watch, now: float) -> None:
        if watch.due is not None:
            if watch.due <= now:
                self._start(watch)
            return
        status = watch.unit.poll()
        if status is not None:
            wait = watch.fell(now)
            self._event(watch.unit.name, f"{describe_exit(status)}; starting it again in {wait:.1f} s")

    def _start(self, watch: _Watch) -> None:
        watch.started, watch.due = time.monotonic(), None
        try:
            watch.unit.start()
        except InterruptedStartError:
            raise
        except (EmbeddedError, OSError) as error:
            wait = watch.fell(time.monotonic())
            self._event(watch.unit.name, f"cannot start: {error}; trying again in {wait:.1f} s")
        else:
            self._event(watch.unit.name, f"started (process {watch.unit.pid})")

    def _reap_orphans(self) -> None:
        """Ends what a dead role left behind in sessions of its own; as subreaper we became its parent."""
        me, known = os.getpid(), {watch.unit.pid for watch in self._units}
        for pid, parent in parents().items():
            if parent == me and pid not in known:
                signalled(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _stop(self) -> None:
        self._event("supervisor", "stopping; once more to force")
        forced = self._end(self._roles, forced=False)
        self._reap_orphans()
        self._end(self._servers, forced=forced)
        self._event("supervisor", "stopped")

    def _end(self, watches: Sequence[_Watch], *, forced: bool) -> bool:
        """Asks units to end and kills those whose grace is over; whether the user forced it."""
        began = time.monotonic()
        for watch in watches:
            watch.unit.terminate()
        while left := [watch for watch in watches if watch.unit.poll() is None]:
            late = [watch for watch in left if forced or time.monotonic() > began + watch.grace]
            for watch in late:
                self._event(watch.unit.name, "did not end in time; killed")
                watch.unit.kill()
            if not late:
                until = began + min(watch.grace for watch in left)
                forced = _wait(until - time.monotonic()) in STOP_SIGNALS
        return forced


def _watched() -> frozenset[signal.Signals]:
    """The signals to act on; not SIGHUP where it is ignored, as under nohup(1)."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return WATCHED - {signal.SIGHUP} if deaf else WATCHED


def _wait(seconds: float | None) -> int | None:
    """Sleeps until a watched signal comes, which it returns, or the time is over."""
    watched = _watched()
    if seconds is None:
        return signal.sigwait(watched)
    event = signal.sigtimedwait(watched, max(seconds, 0.0))
    return event.si_signo if event else None


def answers_health(host: str, port: int) -> bool:
    """Whether `GET /health` is answered with 200 within a third of a second."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    try:
        with socket.create_connection((reachable, port), timeout=0.3) as client:
            client.sendall(f"GET /health HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            return client.recv(100).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def bind_api_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket, kept by the supervisor so that restarts of the API lose no connection.

    Raises `EmbeddedError` when the port is taken or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise EmbeddedError(
                f"Port {port} is already in use on {host}. Stop the program that uses it, or choose another port: "
                f"`sinas up --port {port + 1 if port < 65535 else 8000}` or `make up PORT=...`."
            ) from None
        raise EmbeddedError(f"Cannot listen on {host} port {port}: {error.strerror}.") from None
    listener.set_inheritable(True)
    return listener

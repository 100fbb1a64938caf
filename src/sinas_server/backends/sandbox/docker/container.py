"""One sandbox container as the host sees it: started, used for one execution at a time, given up."""

import asyncio
import contextlib
import json
import random
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from pydantic import JsonValue

from sinas_server.backends.sandbox import Limits, OnOutput, Task
from sinas_server.backends.sandbox.docker.engine import Engine, EngineError
from sinas_server.backends.sandbox.docker.link import Link, LinkLostError
from sinas_server.backends.sandbox.docker.tunnel import Tunnel
from sinas_server.backends.sandbox.egress import EgressProxy
from sinas_server.backends.sandbox.execution import REPLY_EXTRA, Output, request
from sinas_server.backends.sandbox.guest import frames, wire
from sinas_server.backends.sandbox.member import SpawnError
from sinas_server.backends.sandbox.outcome import Evidence, Exit

START_SECONDS = 60.0
END_SECONDS = 5.0
"""For a container to end an execution, or to be ready for the next one."""
FIRST_UID, UIDS = 1_000_000, 1_000
"""User ids on the host, too: they own nothing there, and each container counts up from a start of its own."""


class LeavesThreadsError(Exception):
    """A package cannot be preloaded because importing it starts threads; the argument is its name."""


class _Said(TypedDict, total=False):
    fingerprint: str
    interpreter: str
    landlock: int
    reason: str
    threads: str
    signal: int | None
    code: int | None
    oom: bool


def other_interpreter(found: str) -> str:
    """Why functions can have no packages in an image with another interpreter, and what to do."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (
        f"SANDBOX_IMAGE: its interpreter is {found}, but approved packages are installed for {wire.interpreter()}: "
        f"build the image with `--build-arg BASE=python:{version}-slim`"
    )


@dataclass(frozen=True)
class Furnishing:
    """What the guest is told at its start."""

    packages: tuple[str, ...]
    """Paths inside."""
    preload: tuple[str, ...]


@dataclass(eq=False)
class _Run:
    """The execution that is under way."""

    number: int
    task: Task
    proxy: EgressProxy
    outputs: dict[wire.Kind, Output]
    ended: "asyncio.Future[None]"
    seen: Evidence = field(default_factory=Evidence)
    reply: bytearray = field(default_factory=bytearray)
    tunnels: dict[int, Tunnel] = field(default_factory=dict)
    stopped: bool = False
    """We ended it."""

    @property
    def sound(self) -> bool:
        """Whether it ended by answering or because we said so: a crash, a lie or a lack of memory taints."""
        seen = self.seen
        odd = seen.oversized or seen.broken or seen.out_of_memory
        ended = seen.exit is not None and not seen.exit.restarted
        return ended and not odd and (self.stopped or seen.reply is not None)

    def finish(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def answer(self, body: bytes) -> None:
        """A piece of the reply."""
        self.reply += body
        if len(self.reply) >= frames.HEADER.size:
            size = frames.HEADER.unpack_from(self.reply)[0]
            if size > self.task.limits.result_bytes + REPLY_EXTRA:
                self.seen.oversized = True
                self.finish()

    def end(self, said: _Said) -> None:
        """How it ended, and whether the reply is complete."""
        self.seen.exit = Exit(said.get("signal"), said.get("code"))
        self.seen.out_of_memory = said.get("oom", False)
        size = frames.HEADER.unpack_from(self.reply)[0] if len(self.reply) >= frames.HEADER.size else None
        if size is not None and len(self.reply) >= size + frames.HEADER.size:
            self.seen.reply = bytes(self.reply[frames.HEADER.size : size + frames.HEADER.size])
        elif self.reply:
            self.seen.broken = True
        self.finish()


class Container:
    """A member of the pool."""

    def __init__(self, engine: Engine, name: str, limits: Limits, packages: str | None) -> None:
        self.name = name
        self.limits = limits
        self.packages = packages
        self.executions = 0
        self.landlock = 0
        self.interpreter = ""
        self._engine = engine
        self._id = ""
        self._link: Link | None = None
        self._run: _Run | None = None
        self._ready = asyncio.Event()
        self._said: asyncio.Future[_Said] = asyncio.get_running_loop().create_future()
        self._pongs: dict[int, asyncio.Future[None]] = {}
        self._clean = True
        """Whether it is known to have come to the end of every execution by itself."""
        self._removal: asyncio.Task[None] | None = None

    async def start(self, config: dict[str, JsonValue], furnishing: Furnishing) -> None:
        """Create it, and wait until it can be used. Raises `SpawnError` or `LeavesThreadsError`."""
        try:
            async with asyncio.timeout(START_SECONDS):
                self._id = await self._engine.create(self.name, config)
                self._link = Link(await self._engine.attach(self._id), self._receive)
                await self._engine.start(self._id)
                await self._furnish(self._link, furnishing)
        except BaseException as error:
            self.kill()
            await self.bury()
            if isinstance(error, (LinkLostError, TimeoutError)):
                raise SpawnError(f"a sandbox container did not start: {self._complaint() or error}") from error
            raise

    async def _furnish(self, link: Link, furnishing: Furnishing) -> None:
        config = {
            "shape": {
                "memory_bytes": self.limits.memory_bytes,
                "processes": self.limits.processes,
                "tmp_bytes": self.limits.tmp_bytes,
            },
            "uids": FIRST_UID + random.randrange(FIRST_UID) * UIDS,  # noqa: S311 - not a secret
            "packages": furnishing.packages,
            "preload": furnishing.preload,
        }
        await link.send(wire.Kind.CONFIG, 0, json.dumps(config).encode())
        link.gone.add_done_callback(lambda _: self._lost())
        said = await self._said
        if "threads" in said:
            raise LeavesThreadsError(said["threads"])
        if "reason" in said:
            raise SpawnError(f"a sandbox container could not be set up: {said['reason']}")
        if said["fingerprint"] != wire.fingerprint():
            raise SpawnError("the sandbox image is of another version of this platform: build it again")
        self.landlock, self.interpreter = said["landlock"], said["interpreter"]
        if furnishing.packages and self.interpreter != wire.interpreter():
            raise SpawnError(other_interpreter(self.interpreter))
        await self._ready.wait()

    def _complaint(self) -> str:
        return "" if self._link is None else self._link.complaint

    def _lost(self) -> None:
        """The link broke: the container ended, or the engine."""
        self._clean = False
        self._ready.set()
        if not self._said.done():
            self._said.set_exception(LinkLostError(self._complaint() or "it ended"))
            self._said.exception()  # nobody may be waiting
        for pong in self._pongs.values():
            pong.cancel()
        if self._run is not None:
            self._run.seen.exit = Exit(None, None, restarted=True)
            self._run.finish()

    def _receive(self, kind: int, number: int, body: bytes) -> None:
        if kind == wire.Kind.READY:
            self._ready.set()
        elif kind in {wire.Kind.HELLO, wire.Kind.FAILED}:
            if not self._said.done():
                self._said.set_result(json.loads(body))
        elif kind == wire.Kind.PONG:
            pong = self._pongs.pop(number, None)
            if pong is not None and not pong.done():
                pong.set_result(None)
        elif self._run is not None:
            self._receive_of_run(self._run, kind, number, body)

    def _receive_of_run(self, run: _Run, kind: int, number: int, body: bytes) -> None:
        if kind == wire.Kind.OPEN:
            self._open(run, number)
        elif kind in {wire.Kind.DATA, wire.Kind.EOF, wire.Kind.CLOSE, wire.Kind.TAKEN}:
            tunnel = run.tunnels.get(number)
            if tunnel is not None:
                tunnel.receive(kind, body)
        elif number != run.number:
            return
        elif kind == wire.Kind.REPLY:
            run.answer(body)
        elif kind == wire.Kind.END:
            run.end(json.loads(body))
        elif kind in run.outputs:
            run.outputs[wire.Kind(kind)].feed(body)

    def _open(self, run: _Run, number: int) -> None:
        ours, theirs = socket.socketpair()
        run.proxy.serve(theirs)
        if self._link is not None:
            run.tunnels[number] = Tunnel(number, ours, self._link.send)

    async def execute(self, task: Task, proxy: EgressProxy, on_output: OnOutput | None) -> Evidence:
        """Run one task; the container can be used again if `renewed` says so."""
        if self._link is None:
            raise LinkLostError("the container was not started")
        self.executions += 1
        limit = task.limits.log_bytes
        outputs = {
            wire.Kind.STDOUT: Output("stdout", limit, on_output),
            wire.Kind.STDERR: Output("stderr", limit, on_output),
        }
        run = _Run(self.executions, task, proxy, outputs, asyncio.get_running_loop().create_future())
        self._run = run
        self._ready.clear()
        clean, self._clean = self._clean, False
        try:
            async with asyncio.timeout(task.limits.wall_seconds):
                with contextlib.suppress(LinkLostError):  # its loss ends the run
                    await self._link.send(wire.Kind.RUN, run.number, request(task))
                await run.ended
        except TimeoutError:
            run.seen.timed_out = True
        finally:
            await self._conclude(self._link, run)
            self._clean = clean and run.sound
        return run.seen

    async def _conclude(self, link: Link, run: _Run) -> None:
        """Stop what still runs, and take what it had printed."""
        for tunnel in run.tunnels.values():
            tunnel.close()
        if run.seen.exit is None:
            run.stopped = True
            run.ended = asyncio.get_running_loop().create_future()
            with contextlib.suppress(LinkLostError, TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await link.send(wire.Kind.KILL, run.number)
                    await run.ended
        self._run = None
        run.seen.stdout, run.seen.stderr = (output.finish() for output in run.outputs.values())

    async def renewed(self) -> bool:
        """Wait until it is wiped and a fresh process waits in it; False if it must not be used again."""
        if not self._clean or self._link is None:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._ready.wait()
        return self._ready.is_set() and self._clean

    async def answers(self, seconds: float) -> bool:
        """Whether it is alive."""
        if self._link is None:
            return False
        number = self.executions + 1 + len(self._pongs)
        pong = self._pongs[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._link.send(wire.Kind.PING, number)
                await pong
        except (TimeoutError, LinkLostError):
            return False
        except asyncio.CancelledError:
            if not pong.cancelled():
                raise
            return False
        finally:
            self._pongs.pop(number, None)
        return True

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call when it has died by itself."""
        if self._link is not None:
            self._link.gone.add_done_callback(lambda _: callback())

    def kill(self) -> None:
        """End it; the engine is asked to in the background."""
        if self._removal is None:
            self._removal = asyncio.create_task(self._remove())

    async def _remove(self) -> None:
        if self._link is not None:
            await self._link.close()
        if self._id:
            with contextlib.suppress(EngineError):  # an engine that is away: the next sweep finds it
                await self._engine.remove(self._id)

    async def bury(self) -> None:
        """Wait until it is removed."""
        if self._removal is not None:
            await asyncio.shield(self._removal)

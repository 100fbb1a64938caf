"""One execution on the host's side: send the request, collect what comes, enforce the time limit, end it."""

import asyncio
import contextlib
import os
from collections.abc import Callable

from sinas_server.backends.sandbox import OnOutput, Task
from sinas_server.backends.sandbox.execution import REPLY_EXTRA, Output, request
from sinas_server.backends.sandbox.guest import frames
from sinas_server.backends.sandbox.native.zygote import Child
from sinas_server.backends.sandbox.outcome import Evidence

CHUNK = 1 << 18
EXIT_SECONDS = 5.0


class Stream:
    """A pipe of an execution, read into what is kept of it."""

    def __init__(self, fd: int, output: Output) -> None:
        self._fd = fd
        self._output = output
        self._open = True

    def read(self) -> None:
        """Take what is there now."""
        while self._open:
            try:
                data = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            if data:
                self._output.feed(data)
            else:
                self._open = False
                asyncio.get_running_loop().remove_reader(self._fd)
            if len(data) < CHUNK:
                return

    def finish(self) -> str:
        """Read what is left and give all of it."""
        self.read()
        asyncio.get_running_loop().remove_reader(self._fd)
        return self._output.finish()


class Execution:
    """Runs one task in one child; the child is killed afterwards."""

    def __init__(self, child: Child, task: Task, on_output: OnOutput | None) -> None:
        self._child = child
        self._task = task
        self._streams = (
            Stream(child.stdout, Output("stdout", task.limits.log_bytes, on_output)),
            Stream(child.stderr, Output("stderr", task.limits.log_bytes, on_output)),
        )
        self._received = bytearray()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.seen = Evidence()

    async def run(self) -> Evidence:
        """Everything seen until the end; the child is dead or dying then."""
        loop = asyncio.get_running_loop()
        sock = self._child.sock
        readers: list[tuple[int, Callable[[], None]]] = [
            (self._child.stdout, self._streams[0].read),
            (self._child.stderr, self._streams[1].read),
            (sock.fileno(), self._on_reply),
        ]
        for fd, callback in readers:
            loop.add_reader(fd, callback)
        self._child.exited.add_done_callback(self._on_exit)
        try:
            async with asyncio.timeout(self._task.limits.wall_seconds):
                with contextlib.suppress(ConnectionError):  # it died: its exit says how
                    await loop.sock_sendall(sock, request(self._task))
                await self._done
        except TimeoutError:
            self.seen.timed_out = True
        finally:
            self._child.kill()
            self._child.exited.remove_done_callback(self._on_exit)
            loop.remove_reader(sock.fileno())
            self.seen.stdout, self.seen.stderr = (stream.finish() for stream in self._streams)
        if self.seen.reply is None:
            await self._await_exit()
        return self.seen

    async def _await_exit(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                self.seen.exit = await asyncio.shield(self._child.exited)

    def stop(self) -> None:
        """End the execution now; `seen` says why."""
        self._child.kill()
        self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _on_exit(self, _: object) -> None:
        self._on_reply()
        self._finish()

    def _on_reply(self) -> None:
        while not self._done.done():
            try:
                data = self._child.sock.recv(CHUNK)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(self._child.sock.fileno())
                if self._received:
                    self.seen.broken = True
                return  # the exit follows
            self._received += data
            self._check()

    def _check(self) -> None:
        if len(self._received) < frames.HEADER.size:
            return
        size = frames.HEADER.unpack_from(self._received)[0]
        if size > self._task.limits.result_bytes + REPLY_EXTRA:
            self.seen.oversized = True
            self._finish()
        elif len(self._received) >= size + frames.HEADER.size:
            self.seen.reply = bytes(self._received[frames.HEADER.size : size + frames.HEADER.size])
            self._finish()

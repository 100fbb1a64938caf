"""The host's side of a zygote, whose own side is played by the test: nothing is left of what went wrong."""

import asyncio
import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sinas_server.backends.sandbox import Limits
from sinas_server.backends.sandbox.guest.zygote import MAX_MESSAGE
from sinas_server.backends.sandbox.member import SpawnError
from sinas_server.backends.sandbox.native.zygote import Child, Started, Zygote


@pytest.fixture
def inside() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of the socket between them; the second is the zygote's own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with theirs:
        yield ours, theirs


@pytest.fixture
async def zygote(inside: tuple[socket.socket, socket.socket]) -> AsyncIterator[Zygote]:
    made = Zygote(inside[0], subprocess.Popen(["sleep", "600"]), Started(0, {}))
    yield made
    await made.close()


@pytest.fixture
def theirs(inside: tuple[socket.socket, socket.socket]) -> socket.socket:
    return inside[1]


@pytest.fixture
def sandbox() -> Iterator["subprocess.Popen[bytes]"]:
    """The process of a sandbox."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def descriptors() -> int:
    """Open ones; what tests before have left may close meanwhile."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def asked(zygote: Zygote, theirs: socket.socket) -> "asyncio.Task[Child]":
    """A sandbox that was asked for, which the zygote has read."""
    spawning = asyncio.create_task(zygote.spawn(Limits()))
    await asyncio.sleep(0)
    for fd in socket.recv_fds(theirs, MAX_MESSAGE, 3)[1]:
        os.close(fd)
    return spawning


def say(theirs: socket.socket, *pidfds: int, **message: object) -> None:
    socket.send_fds(theirs, [json.dumps(message).encode()], pidfds)


async def childless(zygote: Zygote) -> None:
    async with asyncio.timeout(20):
        await zygote.childless()


async def test_a_sandbox_that_could_not_be_made_is_not_waited_for(zygote: Zygote, theirs: socket.socket) -> None:
    """Else a zygote that is to end with its last sandbox would never end."""
    spawning = await asked(zygote, theirs)
    say(theirs, spawned=1, error="no more processes")
    with pytest.raises(SpawnError, match="no more processes"):
        await spawning
    await childless(zygote)


async def test_a_sandbox_that_nobody_waits_for_any_more_may_have_ended(
    zygote: Zygote, theirs: socket.socket, sandbox: "subprocess.Popen[bytes]"
) -> None:
    heard: list[object] = []
    loop = asyncio.get_running_loop()
    usual = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    spawning = await asked(zygote, theirs)
    spawning.cancel()
    await asyncio.wait([spawning])
    before = descriptors()
    pidfd = os.pidfd_open(sandbox.pid)
    sandbox.kill()
    sandbox.wait()
    say(theirs, pidfd, spawned=1)
    os.close(pidfd)
    say(theirs, exit=1, signal=None, code=0)
    await childless(zygote)
    loop.set_exception_handler(usual)
    assert heard == []
    assert descriptors() <= before


async def test_a_sandbox_that_comes_in_the_moment_in_which_it_is_canceled_is_ended(
    zygote: Zygote, theirs: socket.socket, sandbox: "subprocess.Popen[bytes]"
) -> None:
    before = descriptors()
    spawning = await asked(zygote, theirs)
    pidfd = os.pidfd_open(sandbox.pid)
    say(theirs, pidfd, spawned=1)
    os.close(pidfd)
    zygote._receive()  # as the event loop does, in the same round
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert await asyncio.to_thread(sandbox.wait, 20) == -signal.SIGKILL
    assert descriptors() <= before


@pytest.mark.parametrize("failing", [1, 2])
async def test_too_many_open_files_leave_none_more(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    pipe, calls = os.pipe, iter(range(1, 10))

    def limited() -> tuple[int, int]:
        if next(calls) == failing:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return pipe()

    before = descriptors()
    monkeypatch.setattr(os, "pipe", limited)
    with pytest.raises(SpawnError, match="Too many open files"):
        await zygote.spawn(Limits())
    monkeypatch.undo()
    assert descriptors() <= before

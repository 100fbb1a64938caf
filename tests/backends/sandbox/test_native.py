"""What only the native driver does: no leaks, recovery of its zygote, nothing left after a kill, levels."""

import asyncio
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sinas_server.backends.sandbox import Ending, Limits, SandboxUnavailable
from sinas_server.backends.sandbox.native import LevelName, NativeSandbox, SandboxConfig, open_sandbox, zygote
from sinas_server.backends.sandbox.native.cgroups import Groups
from sinas_server.backends.sandbox.native.source import NativeMember
from sinas_server.backends.sandbox.native.watchdog import tree
from sinas_server.backends.sandbox.native.zygote import Child
from sinas_server.backends.sandbox.outcome import Exit
from tests.backends.sandbox.conftest import task, until

ONE = "def handler(i, c): return 1"
ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
async def native() -> AsyncIterator[NativeSandbox]:
    sandbox = open_sandbox(SandboxConfig(min_size=2, max_size=4))
    await sandbox.start()
    yield sandbox
    await sandbox.close()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def groups(sandbox: NativeSandbox) -> int:
    found = sandbox.groups
    return 0 if found is None else sum(len(list(parent.glob("*/"))) for parent in found.own_directories())


async def at_rest(sandbox: NativeSandbox) -> None:
    """Wait until the pool is full and nothing is ending: the zygote's two processes and two sandboxes."""
    await until(lambda: sandbox.stats().idle == 2 and len(list(tree(sandbox.zygote_pid))) == 4, "the pool is at rest")
    assert groups(sandbox) <= 3 * 4  # at most one per sandbox that may live, in each of three hierarchies


async def descriptors_at_rest(sandbox: NativeSandbox) -> int:
    await asyncio.gather(*(sandbox.run(task(ONE)) for _ in range(8)))
    await at_rest(sandbox)
    await asyncio.sleep(0.5)
    gc.collect()  # what tests before have left would be collected in the midst of this one
    return descriptors()


async def test_nothing_leaks_after_many_runs(native: NativeSandbox) -> None:
    bodies = ["return 1", "1 / 0", "import os; os._exit(1)", "print('x' * 100000); return 1"]
    before = await descriptors_at_rest(native)
    for _ in range(50):
        await asyncio.gather(*(native.run(task(f"def handler(i, c):\n    {body}")) for body in bodies))
    await at_rest(native)
    await until(lambda: descriptors() <= before, "no more descriptors are open than before")


async def test_nothing_leaks_after_cancelling_at_any_moment(native: NativeSandbox) -> None:
    code = "import os, time\ndef handler(i, c):\n    os.fork()\n    time.sleep(60)"
    before = await descriptors_at_rest(native)
    for attempt in range(40):
        running = [asyncio.create_task(native.run(task(code))) for _ in range(6)]
        await asyncio.sleep(attempt / 1000)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    await at_rest(native)
    await until(lambda: descriptors() <= before, "no more descriptors are open than before")


async def test_a_dead_zygote_is_replaced(native: NativeSandbox) -> None:
    running = asyncio.create_task(native.run(task("import time\ndef handler(i, c): time.sleep(60)")))
    await until(lambda: native.stats().in_use == 1, "it runs")
    os.kill(native.zygote_pid, signal.SIGKILL)
    outcome = await running
    assert outcome.ending is Ending.DIED
    assert outcome.error == "the sandbox was restarted while this ran"
    assert (await native.run(task(ONE))).result == 1
    await at_rest(native)


async def test_a_zygote_that_cannot_be_started_again_at_once_is_later(
    native: NativeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, failures = zygote._launch, [OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) for _ in range(2)]

    def sometimes(executable: str) -> "tuple[socket.socket, subprocess.Popen[bytes]]":
        if failures:
            raise failures.pop()
        return launch(executable)

    monkeypatch.setattr(zygote, "_launch", sometimes)
    os.kill(native.zygote_pid, signal.SIGKILL)
    await until(lambda: not failures, "it was tried twice")
    await at_rest(native)
    assert (await native.run(task(ONE))).result == 1


async def test_a_child_that_dies_idle_is_replaced(native: NativeSandbox) -> None:
    await at_rest(native)
    for pid in list(tree(native.zygote_pid))[2:]:
        os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*(native.run(task(ONE)) for _ in range(4)))
    await at_rest(native)


async def test_packages_that_cannot_be_preloaded(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "spins.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('no')")
    (tmp_path / "fine.py").write_text("value = 7")
    names = ("broken", "spins", "fine", "missing")
    sandbox = open_sandbox(SandboxConfig(packages=(tmp_path,), preload=names, min_size=1))
    await sandbox.start()
    try:
        loaded = sandbox.preloaded
        assert loaded["fine"] is None
        assert loaded["broken"] == "RuntimeError: no"
        assert loaded["missing"] == "ModuleNotFoundError: No module named 'missing'"
        assert loaded["spins"] == "it leaves threads running"
        assert (await sandbox.run(task("import fine, sys\ndef handler(i, c): return fine.value"))).result == 7
    finally:
        await sandbox.close()


async def test_the_level_is_told(native: NativeSandbox) -> None:
    level = native.level
    assert level.name in {LevelName.CGROUPS, LevelName.NAMESPACES}
    assert level.reason.startswith("each execution has its own user, PID, mount, network")


async def test_an_interpreter_that_does_not_run_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="the Python interpreter /no/python does not run"):
        await open_sandbox(SandboxConfig(python=Path("/no/python"))).start()


async def test_a_closed_sandbox_refuses(native: NativeSandbox) -> None:
    await native.close()
    with pytest.raises(SandboxUnavailable, match="closed"):
        await native.run(task(ONE))


HOST = """
import asyncio, sys
from sinas_server.backends.sandbox import Limits, Task
from sinas_server.backends.sandbox.native import SandboxConfig, open_sandbox

CODE = '''import os, time
def handler(i, c):
    if os.fork() == 0: os.setsid(); time.sleep(600)
    print('started'); time.sleep(600)'''

async def main():
    sandbox = open_sandbox(SandboxConfig(min_size=2))
    await sandbox.start()
    await sandbox.run(Task(CODE, ("handler",), None, {}, Limits()), lambda _n, _t: print("started", flush=True))

asyncio.run(main())
"""


def still_there(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in state(pid)]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


async def test_nothing_survives_a_killed_host_and_the_next_start_sweeps() -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, cwd=ROOT)
    assert host.stdout is not None
    assert await asyncio.to_thread(host.stdout.readline) == b"started\n"
    below = list(tree(host.pid))[1:]
    assert len(below) >= 5
    host.kill()
    host.wait()
    host.stdout.close()
    await until(lambda: not still_there(below), "every process of the sandbox is gone")
    sandbox = open_sandbox(SandboxConfig(min_size=1))
    await sandbox.start()
    try:
        if sandbox.groups is not None:
            names = {each.name for own in sandbox.groups.own_directories() for each in own.parent.iterdir()}
            assert not any(name.startswith(f"{host.pid}-") for name in names)
    finally:
        await sandbox.close()


async def test_memory_of_the_whole_tree_counts(native: NativeSandbox) -> None:
    code = """import os, time
def handler(i, c):
    for _ in range(4):
        if os.fork() == 0:
            x = b'x' * (100 << 20)
            time.sleep(5)
            os._exit(0)
    return [os.wait()[1] for _ in range(4)]"""
    limits = Limits(wall_seconds=20, memory_bytes=250 << 20)
    outcome = await native.run(task(code, limits=limits))
    assert outcome.ending is Ending.MEMORY or 9 in (outcome.result or [])  # type: ignore[operator]  # a list of statuses


def test_version_2_groups(tmp_path: Path) -> None:
    # No kernel here gives version 2 controllers: the files are checked in a plain directory with the same names.
    (tmp_path / "cgroup.subtree_control").touch()
    stale = tmp_path / "999999999-1" / "1"
    stale.mkdir(parents=True)
    own = tmp_path / Groups.own_name()
    own.mkdir()
    (own / "cgroup.subtree_control").touch()
    slot_directory = own / "1"
    slot_directory.mkdir()
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max", "cgroup.procs"):
        (slot_directory / name).touch()
    (slot_directory / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    opened = Groups([tmp_path], 2)
    slot = opened.take(Limits(memory_bytes=1 << 20, cpus=0.5, processes=7))
    slot.add(42)
    values = {path.name: path.read_text() for path in slot_directory.iterdir()}
    assert values["memory.max"] == str(1 << 20)
    assert values["memory.oom.group"] == "1"
    assert values["pids.max"] == "7"
    assert values["cpu.max"] == "50000 100000"
    assert values["cgroup.procs"] == "42"
    assert not slot.out_of_memory()
    (slot_directory / "memory.events").write_text("low 0\noom 1\noom_kill 3\n")
    assert slot.out_of_memory()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert not stale.exists()


async def test_a_sandbox_that_outlived_its_zygote_is_ended_too() -> None:
    """One whose process was being made when the zygote was killed: the pool takes it for dead."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    ours, theirs = socket.socketpair()
    exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
    exited.set_result(Exit(signal.SIGKILL, None, restarted=True))
    child = Child(1, ours, -1, -1, exited, os.pidfd_open(process.pid), process.pid)
    member = NativeMember(child, None, Limits(), None, None)
    with theirs:
        member.kill()
        async with asyncio.timeout(10):
            await member.bury()
    assert await process.wait() == -signal.SIGKILL


def test_a_process_whose_parent_died_before_it_asked_to_die_with_it_ends() -> None:
    said = "from sinas_server.backends.sandbox.guest import syscalls; syscalls.die_with_parent({}); print('alive')"
    for parent, expected in ((os.getpid(), "alive\n"), (1 << 30, "")):
        done = subprocess.run([sys.executable, "-c", said.format(parent)], capture_output=True, text=True, check=False)
        assert done.stdout == expected, done.stderr

"""What only the Docker driver does: nothing passes from one execution to the next in its container, and containers
are recycled, tainted, found again and replaced, whatever happens to the worker or the engine."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sinas_server.backends.sandbox import Ending, Limits, SandboxUnavailable
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.docker import DockerSandbox
from sinas_server.backends.sandbox.docker import sandbox as driver
from sinas_server.backends.sandbox.docker.engine import old_runc
from tests.backends.sandbox.conftest import task, until
from tests.backends.sandbox.engine import docker, image, missing_engine, open_docker

pytestmark = pytest.mark.skipif(missing_engine() is not None, reason=missing_engine() or "")
ROOT = Path(__file__).parent.parent.parent.parent
ONE = "def handler(i, c): return 1"
SOCKET = "/var/run/docker.sock"


@asynccontextmanager
async def started(config: SandboxConfig, **changes: str) -> AsyncIterator[DockerSandbox]:
    sandbox = open_docker(config, **changes)
    await sandbox.start()
    try:
        yield sandbox
    finally:
        await sandbox.close()


@pytest.fixture(scope="module")
async def single() -> AsyncIterator[DockerSandbox]:
    """A pool of one container, so that each execution follows the one before in it."""
    async with started(SandboxConfig(min_size=1, min_idle=0, max_size=1, max_executions=10_000)) as sandbox:
        yield sandbox


def names(sandbox: DockerSandbox) -> set[str]:
    stats = sandbox.stats()
    return {member.name for member in (*stats.idle_members, *stats.in_use_members)}


def containers(installation: str) -> list[str]:
    return docker("ps", "-a", "-q", "--filter", f"label=org.sinas.sandbox.installation={installation}").split()


LEAVE = {
    "files": "open('/tmp/x', 'w').write('secret')",
    "what cannot be listed": "import os\nos.mkdir('/tmp/d')\nopen('/tmp/d/x', 'w')\nos.chmod('/tmp/d', 0)",
    "a deep tree": "import os\nfor _ in range(2000): os.mkdir('d'); os.chdir('d')",
    "odd names": "import os\nos.symlink('/etc/passwd', '/tmp/l')\nos.mkfifo('/tmp/p')\nos.mkdir(b'/tmp/\\xff\\n')",
    "a module changed": "import json\njson.hacked = True",
    "a daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(600)\n    os._exit(0)"
    ),
    "a daemon that ignores signals": (
        "import os, signal, time\nif os.fork() == 0:\n    os.setsid()\n"
        "    for s in range(1, 32):\n        try: signal.signal(s, signal.SIG_IGN)\n        except OSError: pass\n"
        "    while True: time.sleep(1)"
    ),
    "a server": (
        "import os, socket, time\nif os.fork() == 0:\n    a = socket.socket(socket.AF_UNIX); a.bind('\\0left')\n"
        "    a.listen(); b = socket.create_server(('127.0.0.1', 5555)); time.sleep(600)\ntime.sleep(0.2)"
    ),
    "shared memory": "from multiprocessing import shared_memory as m\nm.SharedMemory('left', True, 100).close()",
    "a semaphore": "import multiprocessing\nmultiprocessing.Semaphore(1)",
    "a fork bomb": (
        "import os, time\ntry:\n    while True:\n        if os.fork() == 0: time.sleep(600)\nexcept OSError: pass"
    ),
    "a connection to the proxy": (
        "import socket\nfor _ in range(40):\n    s = socket.socket(); s.connect(('127.0.0.1', 3128))\n"
        "    s.send(b'CONNECT x:1 ')"
    ),
    "everything killed": "import os\nfor pid in (1, -1):\n    try: os.kill(pid, 9)\n    except OSError: pass",
}
LOOK = """import json, os, socket
def reached(family, address):
    with socket.socket(family) as s:
        try: s.connect(address); return [str(address)]
        except OSError: return []
def exists(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    except PermissionError: return True
    return pid != os.getpid()
def handler(i, c):
    return {
        'files': os.listdir('/tmp') + os.listdir('/dev/shm'),
        'globals': hasattr(json, 'hacked'),
        'processes': [pid for pid in range(2, 30000) if exists(pid)],
        'servers': reached(socket.AF_UNIX, '\\0left') + reached(socket.AF_INET, ('127.0.0.1', 5555)),
        'uid': os.getuid(),
    }"""


@pytest.mark.parametrize("what", LEAVE)
async def test_nothing_is_left_for_the_next_in_the_same_container(single: DockerSandbox, what: str) -> None:
    uid, before = (await single.run(task(LOOK))).result, names(single)
    body = "".join(f"    {line}\n" for line in LEAVE[what].splitlines())
    left = await single.run(task(f"def handler(i, c):\n{body}    import os\n    return os.getuid()"))
    found = (await single.run(task(LOOK))).result
    assert isinstance(found, dict)
    assert found | {"uid": 0} == {"files": [], "globals": False, "processes": [], "servers": [], "uid": 0}
    assert isinstance(uid, dict)
    if what != "everything killed":  # which is a crash, and taints
        assert left.ending is Ending.OK, left
        assert len({uid["uid"], left.result, found["uid"]}) == 3
        assert names(single) == before


@pytest.mark.parametrize(
    ("call", "numbers"),
    [("shmget", "(29, 5, 4096, 0o1666)"), ("msgget", "(68, 5, 0o1666)"), ("semget", "(64, 5, 1, 0o1666)")],
)
async def test_objects_that_would_outlive_an_execution_are_refused(
    single: DockerSandbox, call: str, numbers: str
) -> None:
    code = f"import ctypes\ndef handler(i, c): return ctypes.CDLL(None).syscall{numbers}"
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    assert (await single.run(task(code))).result == -1, call


async def test_message_queues_are_refused(single: DockerSandbox) -> None:
    code = "import ctypes\ndef handler(i, c): return ctypes.CDLL(None).mq_open(b'/left', 0o102, 0o666, None)"
    assert (await single.run(task(code))).result == -1


async def test_the_kernel_confirms_what_a_waiting_process_may_do(single: DockerSandbox) -> None:
    await until(lambda: single.stats().idle == 1, "it waits")
    supervisor = int(docker("inspect", "--format", "{{.State.Pid}}", *names(single)))
    waiting = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    assert len(waiting) == 1
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{waiting[0]}/status").read_text().splitlines() if ":\t" in line
    )
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
    # Nobody in the container may shrink the bounding set; with no_new_privs it gives nothing.
    assert status["CapBnd"] == "00000000000000c0"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert min(map(int, status["Uid"].split())) >= 1_000_000
    own = Path(f"/proc/{supervisor}/status").read_text()
    assert "CapBnd:\t00000000000000c0" in own  # SETUID and SETGID


async def test_the_container_is_as_closed_as_the_engine_allows(single: DockerSandbox) -> None:
    shown = json.loads(docker("inspect", *names(single)))[0]
    host = shown["HostConfig"]
    assert (host["NetworkMode"], host["IpcMode"], host["ReadonlyRootfs"]) == ("none", "none", True)
    assert (host["CapDrop"], host["Privileged"]) == (["ALL"], False)
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["Memory"] == host["MemorySwap"] == (512 + 64) << 20
    assert host["PidsLimit"] == 34
    assert host["CpuQuota"] == host["CpuPeriod"]
    assert "size=104857600" in host["Tmpfs"]["/tmp"]
    assert not any("docker.sock" in str(mount) for mount in shown["Mounts"])
    assert not [variable for variable in shown["Config"]["Env"] if "KEY" in variable or "PASSWORD" in variable]


async def test_an_attachment_that_is_given_up_leaves_no_connection(
    single: DockerSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the pool is closed while a container starts."""
    read, attached = aiohttp.ClientResponse.read, list[aiohttp.ClientResponse]()

    async def given_up(response: aiohttp.ClientResponse) -> bytes:
        if response.status != 101:
            return await read(response)
        attached.append(response)
        raise asyncio.CancelledError

    engine = single._engine
    assert engine is not None
    monkeypatch.setattr(aiohttp.ClientResponse, "read", given_up)
    with pytest.raises(asyncio.CancelledError):
        await engine.attach(*names(single))
    assert [response.closed for response in attached] == [True]


async def test_a_container_is_recycled_after_its_executions() -> None:
    async with started(SandboxConfig(min_size=1, min_idle=0, max_size=1, max_executions=3)) as sandbox:
        seen: list[str] = []
        for _ in range(8):
            await until(lambda: sandbox.stats().idle == 1, "it is ready")
            seen.append(sandbox.stats().idle_members[0].name)
            assert (await sandbox.run(task(ONE))).result == 1
        assert [seen.count(name) for name in dict.fromkeys(seen)] == [3, 3, 2]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("1 / 0", True),
        ("raise SystemExit", True),
        ("import time; time.sleep(60)", True),
        ("import os; os._exit(1)", False),
        ("import ctypes; ctypes.string_at(0)", False),
        ("import os; os.write(3, b'\\0\\0\\0\\x09hello'); os._exit(0)", False),
        ("return len(b'x' * (900 << 20))", False),
    ],
)
async def test_what_taints(single: DockerSandbox, body: str, kept: bool) -> None:
    await until(lambda: single.stats().idle == 1, "one waits")
    before = names(single)
    limits = Limits(wall_seconds=1 if "sleep" in body else 20)
    assert (await single.run(task(f"def handler(i, c):\n    {body}", limits=limits))).ending is not Ending.OK
    assert (await single.run(task(ONE))).result == 1
    assert (names(single) == before) is kept


async def test_other_executions_do_not_see_a_memory_bomb() -> None:
    bomb = "def handler(i, c):\n    x = []\n    while True: x.append(b'x' * (50 << 20))"
    async with started(SandboxConfig(min_size=2, min_idle=1, max_size=3)) as sandbox:
        bombs = [asyncio.create_task(sandbox.run(task(bomb))) for _ in range(2)]
        outcomes = [await sandbox.run(task(ONE)) for _ in range(5)]
        assert [outcome.result for outcome in outcomes] == [1] * 5
        assert {(await each).ending for each in bombs} == {Ending.MEMORY}


HOST = """
import asyncio, sys
from sinas_server.backends.sandbox import Task
from sinas_server.backends.sandbox.config import SandboxConfig
from sinas_server.backends.sandbox.docker import DockerConfig, DockerSandbox

CODE = "import time\\ndef handler(i, c):\\n    print('started'); time.sleep(600)"

async def main():
    config = DockerConfig(image=sys.argv[1], installation=sys.argv[2], worker="functions-0")
    sandbox = DockerSandbox(SandboxConfig(min_size=2), config)
    await sandbox.start()
    await sandbox.run(Task(CODE, ("handler",), None, {}), lambda _n, _t: print("started", flush=True))

asyncio.run(main())
"""


async def test_containers_end_with_a_killed_worker_and_the_next_one_starts_afresh() -> None:
    installation = f"test-killed-{os.getpid()}"
    command = [sys.executable, "-W", "ignore", "-c", HOST, image(), installation]
    host = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert host.stdout is not None
    while b"started" not in (line := await asyncio.to_thread(host.stdout.readline)):
        assert line, "it ended"
    assert len(containers(installation)) >= 2
    docker(
        *("create", "--label", f"org.sinas.sandbox.installation={installation}"),
        *("--label", "org.sinas.sandbox.worker=functions-0", image()),
    )
    host.kill()
    host.wait()
    host.stdout.close()
    await until(lambda: len(containers(installation)) == 1, "all but the one that never ran are gone")
    async with started(SandboxConfig(min_size=1), installation=installation, worker="functions-0") as sandbox:
        assert (await sandbox.run(task(ONE))).result == 1
        await until(lambda: len(containers(installation)) == sandbox.stats().total, "the old one is removed")
    await until(lambda: not containers(installation), "none is left")


async def test_containers_of_other_workers_are_left_alone() -> None:
    config = SandboxConfig(min_size=1, min_idle=1, max_size=2)
    async with started(config, installation=f"test-two-{os.getpid()}", worker="one") as one:
        before = names(one)
        async with started(config, installation=f"test-two-{os.getpid()}", worker="two") as two:
            assert (await two.run(task(ONE))).result == 1
        assert names(one) == before
        assert (await one.run(task(ONE))).result == 1


class Relay:
    """A way to the engine that can be cut: to its users that is an engine that was killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        engine, out = await asyncio.open_unix_connection(SOCKET)
        self._writers.add(out)
        with contextlib.suppress(OSError):
            await asyncio.gather(self._copy(reader, out), self._copy(engine, writer))
        writer.close()
        out.close()

    @staticmethod
    async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof() and not sink.is_closing():
            sink.write_eof()

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self.path.unlink(missing_ok=True)
        await asyncio.sleep(0)


async def test_an_engine_that_goes_and_comes_back(tmp_path: Path) -> None:
    relay = Relay(tmp_path / "docker.sock")
    await relay.open()
    config = SandboxConfig(min_size=2, min_idle=1, max_size=3, acquire_timeout=1)
    async with started(config, host=f"unix://{relay.path}") as sandbox:
        running = asyncio.create_task(sandbox.run(task("import time\ndef handler(i, c): time.sleep(60)")))
        await until(lambda: sandbox.stats().in_use == 1, "it runs")
        await relay.cut()
        outcome = await running
        assert (outcome.ending, outcome.error) == (Ending.DIED, "the sandbox was restarted while this ran")
        await until(lambda: sandbox.stats().total == 0, "all are lost")
        with pytest.raises(SandboxUnavailable, match=r"within 1 s: .*the Docker engine does not answer"):
            await sandbox.run(task(ONE))
        await relay.open()
        await until(lambda: sandbox.stats().idle == 2, "the pool is full again")
        assert (await sandbox.run(task(ONE))).result == 1
    await relay.cut()


async def test_a_container_that_dies_idle_is_replaced() -> None:
    async with started(SandboxConfig(min_size=2, min_idle=1, max_size=3)) as sandbox:
        before = names(sandbox)
        docker("kill", *before)
        await until(lambda: sandbox.stats().idle == 2 and not names(sandbox) & before, "two new ones wait")


async def test_a_container_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "HEALTH_SECONDS", 0.2)
    monkeypatch.setattr(driver, "ANSWER_SECONDS", 3.0)
    async with started(SandboxConfig(min_size=1, min_idle=1, max_size=2)) as sandbox:
        before = names(sandbox)
        docker("pause", *before)
        await until(lambda: sandbox.stats().idle == 1 and not names(sandbox) & before, "another one waits")


async def test_what_nobody_needs_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "HEALTH_SECONDS", 0.2)
    async with started(SandboxConfig(min_size=1, min_idle=1, max_size=3, idle_seconds=0.1)) as sandbox:
        code = "import time\ndef handler(i, c): time.sleep(60)"
        running = [asyncio.create_task(sandbox.run(task(code, limits=Limits(wall_seconds=60)))) for _ in range(3)]
        await until(lambda: sandbox.stats().in_use == 3, "three run")
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await until(lambda: sandbox.stats().total == 1, "the two that were more are gone")


async def test_what_an_engine_lacks_is_said(tmp_path: Path) -> None:
    config = SandboxConfig(min_size=1)
    with pytest.raises(SandboxUnavailable, match="engine does not answer"):
        await open_docker(config, host=f"unix://{tmp_path}/none").start()
    with pytest.raises(SandboxUnavailable, match=r"SANDBOX_RUNTIME: .* has no runtime 'kata'; it has"):
        await open_docker(config, runtime="kata").start()
    with pytest.raises(SandboxUnavailable, match=r"no image 'no-such-image'.*build it with `docker build"):
        await open_docker(config, image="no-such-image").start()
    with pytest.raises(SandboxUnavailable, match="there is no Docker engine"):
        await open_docker(config, host="nonsense").start()


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("1.1.5+ds1", True),
        ("1.2.7", True),
        ("1.2.8", False),
        ("1.3.2", True),
        ("1.3.3", False),
        ("1.4.0", False),
        ("", False),
    ],
)
def test_old_versions_of_runc_are_told(version: str, old: bool) -> None:
    assert old_runc(version) is old

"""Every way to stop and kill the stack: what dies comes back, what was committed stays, nothing is left behind."""

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from sinas_server.backends.embedded import embedded_servers
from tests.backends.embedded.harness import Stack, alive, eventually
from tests.live import free_port

Run = Callable[..., Stack]


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after a first start: copying it is faster than making one for each test."""
    root = tmp_path_factory.mktemp("initialised")
    with embedded_servers(root, durable=True):
        return root


@pytest.fixture
def run(tmp_path: Path, initialised: Path) -> Iterator[Run]:
    """Starts the stack in a data directory; whatever is left of it ends with the test."""
    started: list[Stack] = []

    def start(*arguments: str, root: Path = tmp_path / "data", **options: int) -> Stack:
        if root.parent.is_dir() and not root.exists():
            shutil.copytree(initialised, root)
        started.append(Stack(root, *arguments, **options))
        return started[-1]

    yield start
    for stack in started:
        stack.kill()


def remember(stack: Stack, value: str) -> None:
    with stack.database() as database:
        database.execute("CREATE TABLE IF NOT EXISTS memory (value text)")
        database.execute("INSERT INTO memory VALUES (%s)", (value,))
    with stack.valkey() as valkey:
        valkey.xadd("memory", {"value": value})


def remembered(stack: Stack) -> tuple[list[object], list[object]]:
    with stack.database() as database:
        rows = [value for (value,) in database.execute("SELECT value FROM memory ORDER BY value")]
    with stack.valkey() as valkey:
        return rows, [fields[b"value"].decode() for _, fields in valkey.xrange("memory")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_clean_and_the_next_start_recovers_nothing(run: Run, number: int) -> None:
    first = run().ready()
    remember(first, "a")
    pids = first.pids()
    events = first.stop(number)
    assert first.process.returncode == 0
    assert "killed" not in events
    assert [pid for pid in pids if alive(pid)] == []
    second = run().ready()
    assert remembered(second) == (["a"], ["a"])
    assert "not shut down cleanly" not in second.stop()


def is_another(stack: Stack, name: str, pid: int) -> bool:
    return stack.pid(name) != pid


def test_kill_9_of_the_supervisor_leaves_no_process_and_loses_no_row(run: Run) -> None:
    first = run().ready()
    remember(first, "a")
    pids = first.pids()
    assert len(pids) > 8
    first.process.kill()
    first.process.wait()
    second = run()  # at once, while the first one's processes are still dying
    eventually(lambda: not any(alive(pid) for pid in pids))
    second.ready()
    assert remembered(second) == (["a"], ["a"])
    assert "not shut down cleanly" in second.stop()


def test_a_second_start_in_the_same_directory_is_refused_with_the_holder(run: Run) -> None:
    first = run().ready()
    second = run()
    refusal = second.ended()
    assert second.process.returncode == 1
    assert f"process {first.process.pid} " in refusal
    assert str(first.root) in refusal
    assert first.health()


def test_a_taken_port_is_named_and_nothing_is_left_running(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        stack = run(port=port)
        said = stack.ended()
    assert stack.process.returncode == 1
    assert f"Port {port} is already in use" in said
    assert "--port" in said
    assert "Traceback" not in said


def test_killed_servers_come_back_with_their_data(run: Run) -> None:
    stack = run().ready()
    remember(stack, "a")
    for name in ("postgres", "valkey-server"):
        before = stack.pid(name)
        os.kill(before, signal.SIGKILL)
        eventually(partial(is_another, stack, name, before))
        eventually(lambda: remembered(stack) == (["a"], ["a"]))
    events = stack.stop()
    assert "postgres     was killed by SIGKILL; starting it again in 0.1 s" in events
    assert "valkey       was killed by SIGKILL; starting it again in 0.1 s" in events


def test_a_killed_backend_is_postgres_own_business(run: Run) -> None:
    stack = run().ready()
    remember(stack, "a")
    postmaster = stack.pid("postgres")
    database = stack.database()
    os.kill(database.info.backend_pid, signal.SIGKILL)
    eventually(lambda: remembered(stack) == (["a"], ["a"]))
    database.close()
    assert stack.pid("postgres") == postmaster


def test_a_killed_role_comes_back_and_takes_what_it_started_along(run: Run) -> None:
    stack = run("careless").ready()
    before = eventually(lambda: stack.worker(0))
    os.kill(stack.pid("sinas-worker-0"), signal.SIGKILL)
    eventually(lambda: stack.worker(0).pid != before.pid)
    assert len(before.started) == 2
    eventually(lambda: not any(alive(pid) for pid in before.started))
    assert alive(stack.worker(0).pid)


def test_a_failing_role_is_started_again_ever_later_and_shows_its_traceback(run: Run) -> None:
    stack = run("failing").ready()
    lines: list[str] = []
    assert stack.process.stderr
    for line in stack.process.stderr:
        lines.append(line)
        if "worker-0" in line and "again in 0.4 s" in line:
            break
    stack.stop()
    waits = [line.split(" again in ")[1] for line in lines if "worker-0" in line and "again" in line]
    assert waits == ["0.1 s\n", "0.2 s\n", "0.4 s\n"]
    assert "RuntimeError: this worker fails\n" in lines


def test_a_role_deaf_to_the_stop_is_killed_after_its_grace(run: Run) -> None:
    stack = run("stubborn").ready()
    pid = eventually(lambda: stack.worker(1)).pid
    assert "worker-1     did not end in time; killed" in stack.stop()
    assert not alive(pid)
    assert stack.process.returncode == 0


def test_a_task_that_fails_before_the_roles_stops_the_start_and_the_servers(run: Run) -> None:
    stack = run("unmigrated")
    said = stack.ended()
    assert stack.process.returncode == 1
    assert "ValueError: no such table" in said
    assert said.endswith("migrate exited with status 1\n")
    assert "not shut down cleanly" not in run().ready().stop()


def test_nohup_is_respected(run: Run) -> None:
    stack = run(nohup=True).ready()
    before = stack.health()
    stack.process.send_signal(signal.SIGHUP)
    os.kill(before, signal.SIGKILL)  # the supervisor sees this after the signal before it
    eventually(lambda: stack.health() != before)
    stack.stop()
    assert stack.process.returncode == 0


def test_a_second_stop_does_not_wait(run: Run) -> None:
    stack = run("eternal").ready()
    pids = stack.pids()
    api = stack.health()
    eventually(lambda: stack.worker(0) and stack.worker(1))
    stack.process.send_signal(signal.SIGINT)
    eventually(lambda: not alive(api))
    stack.stop()
    assert not any(alive(pid) for pid in pids)


def test_the_port_stays_open_while_the_api_restarts(run: Run) -> None:
    stack = run().ready()
    pid = stack.health()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))  # until then it may still accept
    assert stack.health() != pid  # waits in the queue of the socket that the supervisor holds; refused it would raise


def test_secrets_and_sockets_are_for_the_owner_alone(run: Run) -> None:
    stack = run().ready()
    for path in (stack.root, stack.root / "run", stack.root / "secrets", stack.root / "postgres"):
        assert path.stat().st_mode & 0o777 == 0o700, path
    assert (stack.root / "secrets" / "postgres-password").stat().st_mode & 0o777 == 0o600


def test_a_path_too_long_for_a_socket_falls_back_to_the_loopback_with_passwords(run: Run, tmp_path: Path) -> None:
    root = tmp_path / ("long" * 30)
    stack = run(root=root).ready()
    remember(stack, "a")
    assert "@127.0.0.1:" in (root / "ready.json").read_text()
    os.kill(stack.pid("postgres"), signal.SIGKILL)
    eventually(lambda: remembered(stack) == (["a"], ["a"]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; as ordinary user every test shows it")
@pytest.mark.parametrize("uid", [12345, 65534], ids=["nameless", "ordinary"])
def test_it_runs_as_another_user(run: Run, request: pytest.FixtureRequest, uid: int) -> None:
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("no interpreter that every user may run")
    root = Path(tempfile.mkdtemp())  # pytest's own directories are closed to other users
    os.chown(root, uid, uid)
    request.addfinalizer(partial(shutil.rmtree, root))
    first = run(root=root, uid=uid).ready()
    remember(first, "a")
    users = set[int]()
    for pid in first.pids():
        with suppress(FileNotFoundError):  # a connection's own ends with it
            users.add(Path(f"/proc/{pid}").stat().st_uid)
    assert users == {uid}
    first.process.kill()
    first.process.wait()
    second = run(root=root, uid=uid).ready()
    assert remembered(second) == (["a"], ["a"])
    second.stop()


def test_a_recorded_pid_that_now_is_another_process_does_not_stop_the_start(run: Run) -> None:
    first = run().ready()
    record = (first.root / "postgres" / "postmaster.pid").read_text()
    first.stop()
    (first.root / "postgres" / "postmaster.pid").write_text(record.replace(record.split()[0], str(os.getpid()), 1))
    assert run().ready().health()


def test_data_of_another_major_version_is_refused_by_name(run: Run) -> None:
    first = run().ready()
    first.stop()
    (first.root / "postgres" / "PG_VERSION").write_text("17\n")
    said = run().ended()
    assert "written by PostgreSQL 17" in said
    assert "Traceback" not in said


def test_an_interrupted_first_start_is_begun_anew(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "postgres.new" / "base").mkdir(parents=True)
    assert run().ready().health()


def test_a_damaged_log_of_valkey_is_set_aside(run: Run) -> None:
    first = run().ready()
    remember(first, "a")
    first.stop()
    for log in (first.root / "valkey" / "appendonlydir").glob("*.incr.aof"):
        log.write_bytes(b"rubbish\r\n" + log.read_bytes())
    second = run().ready()
    with second.valkey() as valkey:
        assert valkey.dbsize() == 0
    assert "starting empty" in second.stop()
    assert list((first.root / "valkey").glob("damaged-*"))


def test_a_data_directory_that_cannot_be_made_says_why(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = run(root=tmp_path / "file" / "data", port=free_port()).ended()
    assert "cannot be used" in said
    assert "SINAS_DATA_DIR" in said

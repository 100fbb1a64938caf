"""The real `sinas up` in a process of its own, watched: `python -m tests.faults.stack ROOT PORT PARENT`.

For each line that it reads it forks one, and writes its pid, and its exit status when it has ended.
Each role is wrapped after the fork (`hooks.py`); a role or server that dies is started again at once; while
ROOT/no-valkey exists, Valkey cannot be started. ROOT/ready.json appears when the API answers.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sinas_server import roles
from sinas_server.backends.embedded import supervisor
from sinas_server.backends.embedded.datadir import DataDir
from sinas_server.backends.embedded.process import PR_SET_CHILD_SUBREAPER, EmbeddedError, die_with_parent, prctl
from sinas_server.backends.embedded.role import Role, RoleProcess
from sinas_server.backends.embedded.valkey import Valkey
from sinas_server.cli import server
from sinas_server.settings import Settings
from tests.faults.hooks import Hooks
from tests.faults.warm import warm

SETTINGS: dict[str, object] = {
    "sinas_mode": "embedded",
    "bind_host": "127.0.0.1",
    "job_lease_seconds": 3.0,
    "max_history_messages": 12,
    "queue_retry_delay": 0.0,
    "queue_max_retries": 2,
    "sandbox_min_size": 2,
    "sandbox_min_idle": 2,
}


def watch_roles(root: Path) -> None:
    """Have each role install its hooks when it begins."""

    def watched(run: Callable[..., None], kind: str) -> Callable[..., None]:
        def begin(settings: Settings, *rest: object) -> None:
            getattr(Hooks(root, settings), kind)()
            run(settings, *rest)

        return begin

    for name, kind in (
        ("serve_api", "api"),
        ("work_on_functions", "functions"),
        ("work_on_turns", "agents"),
        ("run_scheduler", "scheduler"),
    ):
        setattr(roles, name, watched(getattr(roles, name), kind))


def hold_valkey(root: Path) -> None:
    """Let a test keep Valkey away."""
    spawn = Valkey.spawn

    def held(valkey: Valkey) -> None:
        if (root / "no-valkey").exists():
            raise EmbeddedError("a test keeps it away")
        spawn(valkey)

    setattr(Valkey, "spawn", held)  # noqa: B010 - mypy is right not to like it; it is what we want


def tell_ready(root: Path) -> None:
    """Write down the servers' addresses when everything is ready."""

    def greet(settings: Settings, data: DataDir) -> None:
        assert settings.database_url is not None
        addresses = {
            "database": settings.database_url.get_secret_value(),
            "redis": settings.redis_url.get_secret_value(),
            "key": data.admin_key.read_text().strip(),
        }
        (root / "ready.new").write_text(json.dumps(addresses))
        (root / "ready.new").rename(root / "ready.json")

    setattr(server, "_greet", greet)  # noqa: B010 - as above


def run(root: Path, port: int, settings: Settings) -> None:
    """Be one, until it is stopped."""
    setattr(supervisor, "LONGEST_DELAY", 0.1)  # noqa: B010 - as above
    hold_valkey(root)
    tell_ready(root)
    watch_roles(root)
    server.up(settings.model_copy(update={"sinas_data_dir": root, "port": port}))


def main(root: Path, port: int, parent: int) -> None:
    """Fork one when asked to; ends, and it with us, when nobody can ask any more."""
    die_with_parent(parent)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    answers = os.dup(1)
    os.dup2(2, 1)  # where the product writes too
    settings = Settings(_env_file=None).model_copy(update=SETTINGS)
    warm(root / "warm", settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks for one also stops it
    while os.read(0, 1):
        process = RoleProcess(Role("supervisor", lambda _: run(root, port, settings)), 0, close=[answers])
        process.start()
        os.write(answers, f"{process.pid}\n".encode())
        status = process.wait()
        await_orphans()
        os.write(answers, f"{status}\n".encode())


def await_orphans() -> None:
    """What was below a supervisor that was killed dies by itself; until it has, it holds the port and the directory."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

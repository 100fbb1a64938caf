"""A small program under the supervisor, run by path in a process of its own: `stack.py ROOT PORT [WORKERS]`.

Role `api` answers GET /health with its pid. Role `worker` starts, as a sandbox does, a process in a session of its own
that dies with it. WORKERS makes them otherwise: `careless` (also start one that does not die with them), `failing`,
`stubborn` (deaf to SIGTERM, given a short time), `eternal` (the same, given a long time), `unmigrated` (never reached:
the task before them fails). ROOT/ready.json appears when the API answers.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from sinas_server.backends.embedded.datadir import DataDir
from sinas_server.backends.embedded.postgres import Postgres
from sinas_server.backends.embedded.process import EmbeddedError, log_event
from sinas_server.backends.embedded.role import Role, run_once
from sinas_server.backends.embedded.server import launched, running
from sinas_server.backends.embedded.supervisor import Supervisor, answers_health, bind_api_socket
from sinas_server.backends.embedded.valkey import Valkey

GRACE = {"stubborn": 0.2, "eternal": 1000.0}
SLEEP = ["/bin/sleep", "1000"]


def api(listener: socket.socket) -> None:
    while True:
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(f"HTTP/1.0 200 OK\r\n\r\n{os.getpid()}".encode())


def worker(slot: int, root: Path, mode: str) -> None:
    if mode == "failing":
        raise RuntimeError("this worker fails")
    if mode in GRACE:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    started = [subprocess.Popen(launched(SLEEP, signal.SIGKILL, userns=False))]
    if mode == "careless":
        started.append(subprocess.Popen(SLEEP, start_new_session=True))
    pids = {"pid": os.getpid(), "started": [process.pid for process in started]}
    fresh = root / f"worker-{slot}.new"
    fresh.write_text(json.dumps(pids))
    fresh.rename(root / f"worker-{slot}.json")
    while True:
        signal.pause()


def migrate(mode: str) -> None:
    if mode == "unmigrated":
        raise ValueError("no such table")
    log_event("migrate", "done")


def main(root: Path, port: int, mode: str) -> None:
    data = DataDir(root)
    with data.lock() as lock:
        listener = bind_api_socket("127.0.0.1", port)
        postgres, valkey = Postgres(data), Valkey(data)
        with running([postgres, valkey]):
            postgres.wait_ready()
            valkey.wait_ready()
            run_once(Role("migrate", lambda _: migrate(mode)))

            def ready() -> None:
                addresses = {"database": postgres.url(), "redis": valkey.url()}
                (root / "ready.new").write_text(json.dumps(addresses))
                (root / "ready.new").rename(root / "ready.json")

            workers = Role(
                "worker", lambda slot: worker(slot, root, mode), count=2, grace_seconds=GRACE.get(mode, 10.0)
            )
            Supervisor(
                [postgres, valkey],
                [
                    Role("api", lambda _: api(listener)),
                    workers,
                ],
                is_ready=lambda: answers_health("127.0.0.1", port),
                on_ready=ready,
                close_in_roles=[lock],
            ).run()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), [*sys.argv, ""][3])
    except EmbeddedError as error:
        sys.exit(str(error))

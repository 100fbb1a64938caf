"""A small program under the supervisor, run by path in a process of its own: `stack.py ROOT PORT`.

Role `api` answers GET /health with its pid; role `worker` starts a process in a session of its own, as a sandbox does.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from sinas_server.backends.embedded.datadir import DataDir
from sinas_server.backends.embedded.postgres import Postgres
from sinas_server.backends.embedded.process import EmbeddedError, die_with_parent, log_event
from sinas_server.backends.embedded.role import Role, run_once
from sinas_server.backends.embedded.server import running
from sinas_server.backends.embedded.supervisor import Supervisor, answers_health, bind_api_socket
from sinas_server.backends.embedded.valkey import Valkey


def api(listener: socket.socket) -> None:
    while True:
        client, _ = listener.accept()
        with client:
            client.recv(1000)
            client.sendall(f"HTTP/1.0 200 OK\r\n\r\n{os.getpid()}".encode())


def worker(slot: int, root: Path) -> None:
    parent = os.getpid()
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True, preexec_fn=lambda: die_with_parent(parent))
    # One that escapes: another session, no signal at its parent's death.
    escaped = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    (root / f"worker-{slot}.json").write_text(json.dumps({"pid": parent, "child": child.pid, "escaped": escaped.pid}))

    def end(*_: object) -> None:
        escaped.kill()
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        time.sleep(60)


def main(root: Path, port: int) -> None:
    data = DataDir(root)
    with data.lock() as lock:
        listener = bind_api_socket("127.0.0.1", port)
        postgres, valkey = Postgres(data), Valkey(data)
        with running([postgres, valkey]):
            postgres.wait_ready()
            valkey.wait_ready()
            run_once(Role("migrate", lambda _: log_event("migrate", "done")))
            urls = {"database": postgres.url(), "redis": valkey.url(), "pid": os.getpid()}
            roles = [Role("api", lambda _: api(listener)), Role("worker", lambda slot: worker(slot, root), count=2)]
            Supervisor(
                [postgres, valkey],
                roles,
                is_ready=lambda: answers_health("127.0.0.1", port),
                on_ready=lambda: (root / "ready.json").write_text(json.dumps(urls)) and None,
                close_in_roles=[lock],
            ).run()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except EmbeddedError as error:
        sys.exit(str(error))

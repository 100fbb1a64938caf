"""The whole product behind a real PgBouncer that pools by transaction, as `deploy/compose.yaml` has it."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx2
import psycopg
import pytest
from sqlalchemy.engine import URL, make_url

from tests.live import START_SECONDS, free_port, running

NAME = "pooled"
POOL = 4
"""Fewer connections than each process of the product has to PgBouncer."""
CALLERS, CALLS = 8, 40
SQUARE = "def handler(input_data, context):\n    return input_data['n'] ** 2\n"
ANY: dict[str, object] = {}
RULES = [
    {"when": {"contains": "seven"}, "answer": "Let me see.", "call": [{"tool": "p/square", "arguments": {"n": 7}}]},
    {"when": {"after_tool": "p/square"}, "answer": "It is {{ results['p/square'] }}."},
]
SETTINGS = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {root}/users.txt
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 500
"""
pytestmark = pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="PgBouncer is not installed; CI installs Debian's"
)


@pytest.fixture(scope="module")
def pooled(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """An empty database behind a PgBouncer."""
    url = make_url(database_url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute("CREATE DATABASE pooled")
    root, own = tmp_path_factory.mktemp("pgbouncer"), free_port()
    host, port = url.query.get("host") or url.host, url.port or 5432
    (root / "users.txt").write_text(f'"{url.username}" "{url.password}"\n')
    (root / "settings.ini").write_text(SETTINGS.format(host=host, port=port, own=own, root=root, pool=POOL))
    # It refuses to be root. In a user namespace it is another user, who may still read what is ours.
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "pgbouncer", str(root / "settings.ini")]
    with (root / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        made = url.set(host="127.0.0.1", port=own, database=NAME, query={})
        try:
            _await(made, root / "log")
            yield made
        finally:
            process.terminate()


def _await(url: URL, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with suppress(psycopg.OperationalError), _connect(url):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _await_few(url: URL) -> None:
    """Wait until no more connections than may be are left: one that was replaced ends in its own time."""
    until = time.monotonic() + START_SECONDS
    with _connect(url) as connection:
        while time.monotonic() < until:
            used = connection.execute("SELECT count(*) <= %s FROM pg_stat_activity WHERE datname = %s", (POOL, NAME))
            if used.fetchone() == (True,):
                return
            time.sleep(0.1)
    raise AssertionError("it does not pool")


def _connect(url: URL) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True, prepare_threshold=None)


def _made(client: httpx2.Client, path: str, body: Mapping[str, object]) -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _squared(client: httpx2.Client, n: int) -> int:
    answer = client.post("/functions/p/square/execute", json={"input": {"n": n}}, timeout=START_SECONDS)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["result"])


def test_calls_and_turns_come_right_through_few_connections(pooled: URL, tmp_path: Path) -> None:
    address = pooled.render_as_string(hide_password=False)
    with running(tmp_path / "data", DATABASE_URL=address) as live, live.client() as client:
        square = {"namespace": "p", "name": "square", "code": SQUARE, "input_schema": ANY, "output_schema": ANY}
        _made(client, "/api/v1/functions", square)
        model = {"name": "p", "provider_type": "scripted", "config": {"rules": RULES}}
        provider = _made(client, "/api/v1/llm-providers", model)
        agent = {"namespace": "p", "name": "agent", "llm_provider_id": provider, "enabled_functions": ["p/square"]}
        _made(client, "/api/v1/agents", agent)
        with ThreadPoolExecutor(CALLERS) as callers:
            found = list(callers.map(partial(_squared, client), range(CALLS)))
        assert found == [n**2 for n in range(CALLS)]
        chat = client.post("/agents/p/agent/chats", json={}).json()["id"]
        said = client.post(f"/chats/{chat}/messages", json={"content": "seven?"}).json()
        assert said["content"] == "It is 49."
        _await_few(pooled)
    with running(tmp_path / "data", DATABASE_URL=address) as live, live.client() as client:
        assert _squared(client, 9) == 81  # nothing is left of the first start that the second stumbles over

"""The embedded stack: the bundled PostgreSQL and Valkey, and the supervisor that keeps all processes alive."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinas_server.backends.embedded.datadir import DataDir
from sinas_server.backends.embedded.postgres import Postgres
from sinas_server.backends.embedded.process import OnEvent, log_event
from sinas_server.backends.embedded.server import running
from sinas_server.backends.embedded.valkey import Valkey


@contextmanager
def embedded_servers(root: Path, *, durable: bool = False, on_event: OnEvent = log_event) -> Iterator[tuple[str, str]]:
    """Runs both servers in `root` while the block runs and gives their addresses `(database_url, redis_url)`.

    For tests and benchmarks; without `durable` nothing is synced to disk. They die with the thread that enters.
    """
    data = DataDir(root)
    postgres = Postgres(data, durable=durable, on_event=on_event)
    valkey = Valkey(data, durable=durable, on_event=on_event)
    with data.lock(), running([postgres, valkey], orderly=durable):
        postgres.wait_ready()
        valkey.wait_ready()
        yield postgres.url(), valkey.url()

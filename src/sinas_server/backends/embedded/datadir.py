"""The data directory of an embedded stack: its paths, its exclusive lock, and the secrets generated into it once."""

import base64
import fcntl
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinas_server.backends.embedded.process import EmbeddedError

LONGEST_SOCKET_PATH = 100  # bytes; sun_path holds 108 on Linux and 104 on macOS, with the final NUL


class DataDirBusyError(EmbeddedError):
    """Another supervisor holds the data directory."""


class DataDir:
    """Where an embedded stack keeps everything; only its owner can enter."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.postgres = self.root / "postgres"
        self.valkey = self.root / "valkey"
        self.run = self.root / "run"
        self.logs = self.root / "logs"
        self.outbox = self.root / "outbox"
        self.secrets = self.root / "secrets"
        self.admin_key = self.root / "admin-key"
        self.lock_file = self.root / "lock"

    def create(self) -> None:
        """Makes the directories, mode 0700; raises `EmbeddedError` when that is not possible."""
        for directory in (self.root, self.valkey, self.run, self.logs, self.outbox, self.secrets):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                directory.chmod(0o700)
            except OSError as error:
                raise EmbeddedError(
                    f"The data directory {self.root} cannot be used: {error.strerror} ({error.filename}). "
                    "Make it writable or choose another with SINAS_DATA_DIR."
                ) from error

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Holds the directory exclusively until left, giving the file descriptor that carries the lock.

        Raises `DataDirBusyError` with the holder's pid. However the holder dies, the kernel drops the lock.
        """
        self.create()
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._acquire(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int) -> None:
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid, _, host = os.pread(descriptor, 300, 0).decode(errors="replace").strip().partition(" ")
                # After a kill -9 of the holder its forked roles keep the lock for the moment that they take to die.
                dying = host == socket.gethostname() and not Path(f"/proc/{pid or 'none'}").exists()
                if time.monotonic() - began > (5.0 if dying else 0.2):  # `holder` takes the lock for an instant
                    raise DataDirBusyError(
                        f"The data directory {self.root} is in use: `sinas up` already runs there "
                        f"(process {pid or 'unknown'} on {host or 'this machine'}). "
                        "Stop it first, or choose another directory with SINAS_DATA_DIR."
                    ) from None
                time.sleep(0.05)
            else:
                return

    def holder(self) -> int | None:
        """The pid of the supervisor that holds the directory, None when nobody does."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 300, 0).decode(errors="replace").split()
            return int(text[0]) if text and text[0].isdigit() else 0
        else:
            return None
        finally:
            os.close(descriptor)

    def ensure_secret(self, name: str) -> str:
        """The secret `name`, generated at the first call into a file of mode 0600 and the same ever after.

        `ENCRYPTION_KEY` is a Fernet key (32 bytes, URL-safe base64); every other one holds 48 bytes in that alphabet.
        """
        path = self.secrets / name
        if not path.exists():
            fresh = base64.urlsafe_b64encode(os.urandom(32)).decode()
            write_private(path, fresh if name == "ENCRYPTION_KEY" else secrets.token_urlsafe(48))
        value = path.read_text().strip()
        if not value:
            raise EmbeddedError(f"The secret {path} is empty. Restore it from a backup; data may be encrypted with it.")
        return value

    def socket_fits(self, name: str) -> bool:
        """Whether a unix socket `name` in the `run` directory has a path that the system can address."""
        return len(os.fsencode(self.run / name)) <= LONGEST_SOCKET_PATH


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 that after a crash is either there whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # mkstemp gives mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames inside a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_port() -> int:
    """A TCP port on the loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

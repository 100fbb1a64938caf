"""One attack on the sandbox, the bait on the host, and how to tell from an answer that it failed.

An answer is what a caller sees: `result`, `error`, `stdout`, `stderr`. `holds` says whether the attack failed.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Answer = Mapping[str, object]
SECRET = "hunter2"


@dataclass(frozen=True)
class Host:
    """What is worth stealing on the machine that runs the sandbox."""

    port: int
    """A service on 127.0.0.1, as PostgreSQL is."""
    abstract: str
    """An abstract Unix socket's name."""
    secret_file: Path
    pid: int
    """A process that the sandbox's own user may signal."""


@dataclass(frozen=True)
class Attack:
    """One attempt."""

    name: str
    code: str
    holds: Callable[[Answer], bool]
    wall_seconds: float = 10.0
    namespaces: bool = True
    """Whether it needs namespaces to hold: at the Landlock level something weaker does."""
    needs: tuple[str, ...] = ()
    """Packages that the code imports."""
    only_native: str = ""
    """Why it says nothing about a container, if so."""


@contextmanager
def bait(directory: Path) -> Iterator[Host]:
    """Put something worth stealing on this machine, its environment included."""
    secret = directory / "secret.txt"
    secret.write_text("host secret")
    os.environ["TOP_SECRET"] = SECRET
    abstract = f"sinas-bait-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as service, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0{abstract}")
        unix.listen(1)
        yield Host(service.getsockname()[1], abstract, secret, os.getpid())
    del os.environ["TOP_SECRET"]


def handler(body: str) -> str:
    return "def handler(input_data, context):\n" + "".join(f"    {line}\n" for line in body.splitlines())


def text(answer: Answer) -> str:
    return str({key: value for key, value in answer.items() if key != "traceback"})


def failed(*reasons: str) -> Callable[[Answer], bool]:
    """The code raised, for one of these reasons."""
    return lambda answer: (
        answer["result"] is None and any(reason.lower() in str(answer["error"]).lower() for reason in reasons)
    )


def gives(expected: object) -> Callable[[Answer], bool]:
    return lambda answer: answer["result"] == expected


def result_list(answer: Answer) -> list[object]:
    result = answer["result"]
    return result if isinstance(result, list) else []


UNREACHABLE = failed("refused", "unreachable", "not permitted", "timed out", "Errno 1]", "Tunnel")
NO_FILE = failed("FileNotFound", "NotADirectory", "PermissionError")
READ_ONLY = failed("Read-only", "PermissionError")


def first_of(answer: Answer) -> int:
    first = (result_list(answer) or [-1])[0]
    return first if isinstance(first, int) else -1

"""The load generator for machines without a C compiler: the same arguments and answers as client.c, more CPU."""

import json
import os
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(eq=False)
class Connection:
    """One kept-alive connection with its answer so far."""

    port: int
    sock: socket.socket = field(init=False)
    sent: float = 0.0
    marked: float | None = None
    answer: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.sock = socket.create_connection(("127.0.0.1", self.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> None:
        self.answer.clear()
        self.marked = None
        self.sent = time.perf_counter()
        self.sock.sendall(request)

    def receive(self, mark: bytes) -> bool:
        """Takes in what came; whether the answer is over."""
        part = self.sock.recv(1 << 20)
        self.answer += part
        if self.marked is None and mark in self.answer:
            self.marked = time.perf_counter()
        head, found, body = bytes(self.answer).partition(b"\r\n\r\n")
        _, stated, length = head.lower().partition(b"\r\ncontent-length:")
        if found and stated:
            return len(body) >= int(length.split(b"\r\n")[0])
        return not part or body == b"0\r\n\r\n" or body.endswith(b"\n0\r\n\r\n")


@dataclass
class Result:
    """What is printed."""

    marked: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0

    def note(self, sent: float, marked: float, ended: float) -> None:
        self.marked.append((marked - sent) * 1e6)
        self.ended.append((ended - sent) * 1e6)


def http(port: int, count: int, seconds: float, limit: int, mark: bytes, requests: list[bytes]) -> Result:
    result, asked, open_connections = Result(), 0, count
    began = time.perf_counter()
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            connection = Connection(port)
            selector.register(connection.sock, selectors.EVENT_READ, connection)
            connection.ask(requests[asked % len(requests)])
            asked += 1
        while open_connections:
            for key, _ in selector.select():
                connection = key.data
                if not connection.receive(mark):
                    continue
                now = time.perf_counter()
                if connection.marked is None or not connection.answer.startswith(b"HTTP/1.1 200"):
                    result.failed += 1
                else:
                    result.note(connection.sent, connection.marked, now)
                if (not seconds or now < began + seconds) and (not limit or asked < limit) and connection.answer:
                    connection.ask(requests[asked % len(requests)])
                    asked += 1
                else:
                    selector.unregister(connection.sock)
                    connection.sock.close()
                    open_connections -= 1
    result.seconds = time.perf_counter() - began
    return result


def spawn(limit: int, command: list[str]) -> Result:
    result, began = Result(), time.perf_counter()
    for _ in range(limit):
        started = time.perf_counter()
        pid = os.posix_spawn(command[0], command, os.environ)
        result.failed += bool(os.waitpid(pid, 0)[1])
        ended = time.perf_counter()
        result.note(started, ended, ended)
    result.seconds = time.perf_counter() - began
    return result


def main(arguments: list[str]) -> None:
    if arguments[0] == "spawn":
        result = spawn(int(arguments[1]), arguments[2:])
    else:
        port, connections, seconds, count, mark, file = arguments[1:]
        requests = Path(file).read_bytes().split(b"\0")[:-1]
        result = http(int(port), int(connections), float(seconds), int(count), mark.encode(), requests)
    print(json.dumps(vars(result)))


if __name__ == "__main__":
    main(sys.argv[1:])

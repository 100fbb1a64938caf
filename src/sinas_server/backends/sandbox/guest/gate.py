"""The egress proxy's door inside a container: connections to it are passed on to the host, frame by frame."""

import functools
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from . import network, wire

CHUNK = 1 << 15
BACKLOG = 64
Handler = Callable[[int], object]


class Channel(Protocol):
    """Where frames go."""

    @property
    def full(self) -> bool:
        """Whether the host should take something first."""
        ...

    def send(self, kind: wire.Kind, number: int, body: bytes = b"") -> None:
        """Send a frame."""
        ...


@dataclass
class _Connection:
    number: int
    sock: socket.socket
    pending: bytearray = field(default_factory=bytearray)
    """From the host, to be written."""
    unconfirmed: int = 0
    """Bytes sent to the host that it has not passed on yet."""
    guest_done: bool = False
    host_done: bool = False


class Gate:
    """The door of one execution at a time. A closed door loses everything, also what was not accepted yet."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._connections: dict[int, _Connection] = {}
        self._last = 0
        self._listener = self._listen()

    @staticmethod
    def _listen() -> socket.socket:
        listener = socket.create_server(("127.0.0.1", network.PORT), backlog=BACKLOG)
        listener.setblocking(False)
        return listener

    def renew(self) -> None:
        """A new door for the next execution. Raises `OSError`."""
        self._listener.close()
        for connection in self._connections.values():
            connection.sock.close()
        self._connections.clear()
        self._listener = self._listen()

    def sources(self) -> Iterator[tuple[int, int, Handler]]:
        """What to wait for: a descriptor, events of poll(2), and what to do with them."""
        full = self._channel.full
        if not full:
            yield self._listener.fileno(), select.POLLIN, self._accept
        for connection in list(self._connections.values()):
            wanted = select.POLLOUT if connection.pending else 0
            if not (full or connection.guest_done) and connection.unconfirmed < wire.WINDOW:
                wanted |= select.POLLIN
            if wanted:
                yield connection.sock.fileno(), wanted, functools.partial(self._move, connection)

    def _accept(self, _: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        self._last += 1
        self._connections[self._last] = _Connection(self._last, sock)
        self._channel.send(wire.Kind.OPEN, self._last)

    def _move(self, connection: _Connection, events: int) -> None:
        try:
            if events & select.POLLOUT:
                self._write(connection)
            if events & ~select.POLLOUT and not connection.guest_done:
                self._read(connection)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            self._channel.send(wire.Kind.CLOSE, connection.number)

    def _read(self, connection: _Connection) -> None:
        data = connection.sock.recv(CHUNK)
        if data:
            connection.unconfirmed += len(data)
            self._channel.send(wire.Kind.DATA, connection.number, data)
            return
        connection.guest_done = True
        self._channel.send(wire.Kind.EOF, connection.number)
        self._forget_if_done(connection)

    def _write(self, connection: _Connection) -> None:
        taken = connection.sock.send(connection.pending)
        del connection.pending[:taken]
        self._channel.send(wire.Kind.TAKEN, connection.number, taken.to_bytes(4, "big"))
        if connection.host_done and not connection.pending:
            connection.sock.shutdown(socket.SHUT_WR)
            self._forget_if_done(connection)

    def _forget_if_done(self, connection: _Connection) -> None:
        if connection.guest_done and connection.host_done and not connection.pending:
            self._drop(connection)

    def _drop(self, connection: _Connection) -> None:
        if self._connections.pop(connection.number, None) is not None:
            connection.sock.close()

    def receive(self, kind: int, number: int, body: bytes) -> None:
        """A frame of the host about a connection; those about one that is gone are ignored."""
        connection = self._connections.get(number)
        if connection is None:
            return
        if kind == wire.Kind.DATA:
            connection.pending += body
        elif kind == wire.Kind.TAKEN:
            connection.unconfirmed -= int.from_bytes(body, "big")
        elif kind == wire.Kind.CLOSE:
            self._drop(connection)
        elif kind == wire.Kind.EOF:
            connection.host_done = True
            if not connection.pending:
                self._end_writing(connection)

    def _end_writing(self, connection: _Connection) -> None:
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
            return
        self._forget_if_done(connection)

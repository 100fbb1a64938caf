"""Outgoing connections of Python code: `socket` and asyncio go through the egress proxy that the host serves.

The sandbox has an empty network namespace; the one thing in it is a listening port on 127.0.0.1 whose socket is held
by the host. Connections inside the sandbox (127.0.0.1, Unix sockets) stay as they are.
"""

import _socket
import errno
import socket
from asyncio import selector_events
from collections.abc import Iterator
from contextlib import contextmanager

PORT = 3128
NON_BLOCKING_WAIT = 30.0
"""Seconds that a connect of a non-blocking socket outside asyncio may block: it must speak to the proxy first."""
MAX_HEAD = 4096
STREAM_PROTOCOLS = {0, socket.IPPROTO_TCP}

Address = tuple[object, ...]

_raw_connect = _socket.socket.connect
_raw_getaddrinfo = socket.getaddrinfo
_raw_loop_connect = selector_events.BaseSelectorEventLoop.sock_connect


def is_own(host: str) -> bool:
    """Whether a host means the sandbox itself."""
    own = {"", "localhost", "::1", "::", "0.0.0.0"}  # noqa: S104 - recognised, not bound
    return host in own or host.startswith(("127.", "::ffff:127."))


def _text(host: object) -> str:
    if isinstance(host, (bytes, bytearray)):
        return bytes(host).decode("ascii")
    return host.lower() if isinstance(host, str) else ""


def _wire(name: str) -> str:
    """A host name as it is sent. Raises `socket.gaierror` for what cannot be one."""
    try:
        text = name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        text = ""
    if not text.isprintable() or not text or " " in text:
        raise socket.gaierror(socket.EAI_NONAME, f"{name!r} is not a host name")
    return text


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.split("%", maxsplit=1)[0])
        except OSError:
            continue
        return True
    return False


def _proxy(family: int) -> tuple[str, int] | tuple[str, int, int, int]:
    return ("::ffff:127.0.0.1", PORT, 0, 0) if family == socket.AF_INET6 else ("127.0.0.1", PORT)


@contextmanager
def _patiently(sock: socket.socket) -> Iterator[None]:
    """A non-blocking socket blocks while it speaks to the proxy."""
    if sock.gettimeout() != 0:
        yield
        return
    sock.settimeout(NON_BLOCKING_WAIT)
    try:
        yield
    finally:
        sock.settimeout(0)


def _check(head: bytes) -> None:
    """Raise what a direct connection would have raised, from the proxy's answer."""
    lines = head.decode("latin-1").split("\r\n")
    status = lines[0].split(" ")[1] if " " in lines[0] else ""
    if status == "200":
        return
    reason = next((line[9:] for line in lines if line.lower().startswith("x-error: ")), lines[0])
    if status == "404":
        raise socket.gaierror(socket.EAI_NONAME, reason)
    kinds = {"403": (PermissionError, errno.EACCES), "504": (TimeoutError, errno.ETIMEDOUT)}
    kind, code = kinds.get(status, (ConnectionRefusedError, errno.ECONNREFUSED))
    raise kind(code, reason)


def _closed() -> ConnectionError:
    return ConnectionResetError(errno.ECONNRESET, "the egress proxy closed the connection")


class Router:
    """Sends connections through the proxy and remembers which name an address was looked up for."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._stand_ins: dict[str, str] = {}

    def leaves(self, sock: socket.socket, address: object) -> bool:
        """Whether connecting `sock` to `address` leaves the sandbox."""
        if sock.family not in {socket.AF_INET, socket.AF_INET6} or not sock.type & socket.SOCK_STREAM:
            return False
        return isinstance(address, tuple) and len(address) >= 2 and not is_own(_text(address[0]))

    def request(self, address: Address) -> bytes:
        """The proxy request for an address: by the name it was looked up for, if any."""
        host = _text(address[0]).split("%")[0]
        name = _wire(self._names.get(host, host))
        target = f"[{name}]" if ":" in name else name
        return f"CONNECT {target}:{address[1]} HTTP/1.1\r\n\r\n".encode()

    def connect(self, sock: socket.socket, address: Address) -> None:
        """Connect through the proxy. Raises the `OSError` that a direct connection would."""
        request = self.request(address)
        with _patiently(sock):
            _raw_connect(sock, _proxy(sock.family))
            _socket.socket.sendall(sock, request)
            head = b""
            while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows belongs to the caller
                part = _socket.socket.recv(sock, 1)
                if not part or len(head) > MAX_HEAD:
                    raise _closed()
                head += part
        _check(head)

    async def loop_connect(
        self, loop: selector_events.BaseSelectorEventLoop, sock: socket.socket, address: Address
    ) -> None:
        """The same without blocking the event loop."""
        request = self.request(address)
        await _raw_loop_connect(loop, sock, _proxy(sock.family))
        await loop.sock_sendall(sock, request)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = await loop.sock_recv(sock, 1)
            if not part or len(head) > MAX_HEAD:
                raise _closed()
            head += part
        _check(head)

    def look_up(self, name: str) -> list[str]:
        """The addresses of a host name, as the host resolves it. Raises `socket.gaierror` or another `OSError`."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(NON_BLOCKING_WAIT)
            sock.connect(_proxy(socket.AF_INET))
            sock.sendall(f"RESOLVE {_wire(name)} HTTP/1.1\r\n\r\n".encode())
            answer = b""
            while part := sock.recv(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        _check(head)
        addresses = [self._stand_in(name) if is_own(text) else text for text in body.decode("ascii").split()]
        self._names.update(dict.fromkeys(addresses, name))
        return addresses

    def _stand_in(self, name: str) -> str:
        """An address that exists nowhere (RFC 5737), for a name that means the host's own loopback: ours is another."""
        return self._stand_ins.setdefault(name, f"192.0.2.{len(self._stand_ins) % 254 + 1}")

    def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the signature is the standard library's
        proto: int = 0,
        flags: int = 0,
    ) -> list[tuple[object, ...]]:
        """`socket.getaddrinfo`, resolved by the host under the egress policy."""
        name = "" if host is None else _text(host)
        if is_own(name) or _is_address(name) or flags & socket.AI_NUMERICHOST:
            return list(_raw_getaddrinfo(host, port, family, type, proto, flags))
        found: list[tuple[object, ...]] = []
        for address in self.look_up(name):
            if family in {0, socket.AF_INET6 if ":" in address else socket.AF_INET}:
                found += _raw_getaddrinfo(address, port, family, type, proto, 0)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, f"{name} has no address of this family")
        return found

    def gethostbyname(self, name: str) -> str:
        """`socket.gethostbyname`: the first IPv4 address."""
        return self.gethostbyname_ex(name)[2][0]

    def gethostbyname_ex(self, name: str) -> tuple[str, list[str], list[str]]:
        """`socket.gethostbyname_ex`: all IPv4 addresses."""
        found = self.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
        return name, [], [str(entry[4][0]) for entry in found if isinstance(entry[4], tuple)]


def install() -> None:
    """Route this process' connections, and those of all it forks, through the proxy."""
    router = Router()

    def connect(self: socket.socket, address: Address) -> None:
        if router.leaves(self, address):
            router.connect(self, address)
        else:
            _raw_connect(self, address)

    def connect_ex(self: socket.socket, address: Address) -> int:
        try:
            connect(self, address)
        except OSError as error:
            return error.errno or errno.ECONNREFUSED
        return 0

    async def sock_connect(self: selector_events.BaseSelectorEventLoop, sock: socket.socket, address: Address) -> None:
        if router.leaves(sock, address):
            await router.loop_connect(self, sock, address)
        else:
            await _raw_loop_connect(self, sock, address)

    for owner, name, value in (
        (socket.socket, "connect", connect),
        (socket.socket, "connect_ex", connect_ex),
        (socket, "getaddrinfo", router.getaddrinfo),
        (socket, "gethostbyname", router.gethostbyname),
        (socket, "gethostbyname_ex", router.gethostbyname_ex),
        (selector_events.BaseSelectorEventLoop, "sock_connect", sock_connect),
    ):
        setattr(owner, name, value)

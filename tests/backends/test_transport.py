"""What is sent and heard over the guarded transport, byte for byte, and what goes wrong there in httpx's own words."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import IPv4Address
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sinas_server.backends import transport
from sinas_server.backends.transport import GuardedTransport
from sinas_server.kit.clock import now

ANSWER = b"HTTP/1.1 200 Fine\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 2\r\n\r\nok"
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(transport=GuardedTransport(), timeout=20, headers={"user-agent": "us"}) as made:
        yield made


@asynccontextmanager
async def serving(handle: Handle, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server."""

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    async with await asyncio.start_server(closing, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_request_arrives_as_httpx_wrote_it(client: httpx2.AsyncClient) -> None:
    got: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        got.extend((head, await reader.readexactly(7)))
        writer.write(ANSWER)

    async with serving(handle) as port:
        url = f"http://name:word@127.0.0.1:{port}/a%2Fb//c%20d?q=%2B+e&q="
        answer = await client.post(url, content=b'{"a":1}', headers={"x-two": "2", "Content-Type": "text/odd"})
    line, *fields = got[0].decode().strip().split("\r\n")
    headers = [field.split(": ", 1) for field in fields]
    assert line == "POST /a%2Fb//c%20d?q=%2B+e&q= HTTP/1.1"
    assert {name.lower(): value for name, value in headers} == {
        "host": f"127.0.0.1:{port}",
        "accept": "*/*",
        "accept-encoding": client.headers["accept-encoding"],
        "connection": "keep-alive",
        "user-agent": "us",
        "x-two": "2",
        "content-type": "text/odd",
        "authorization": "Basic bmFtZTp3b3Jk",
        "content-length": "7",
    }
    assert len(headers) == 9
    assert got[1] == b'{"a":1}'
    assert (answer.status_code, answer.reason_phrase, answer.text) == (200, "Fine", "ok")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]


async def _says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _stops_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")


async def _falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _stops_in_the_middle(reader, writer)
    await reader.read()


async def _hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def _speaks_something_else(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"220 mail.example.com\r\n\r\n")


@pytest.mark.parametrize(
    ("handle", "seconds", "error"),
    [
        (_says_nothing, 0.2, httpx2.ReadTimeout),
        (_falls_silent, 0.2, httpx2.ReadTimeout),
        (_stops_in_the_middle, 20, httpx2.RemoteProtocolError),
        (_hangs_up, 20, httpx2.RemoteProtocolError),
        (_speaks_something_else, 20, httpx2.RemoteProtocolError),
    ],
)
async def test_what_a_server_does_wrong(
    client: httpx2.AsyncClient, handle: Handle, seconds: float, error: type[httpx2.TransportError]
) -> None:
    async with serving(handle) as port:
        with pytest.raises(error) as caught:
            await client.get(f"http://127.0.0.1:{port}/", timeout=httpx2.Timeout(20, read=seconds))
        assert caught.value.request.url.port == port
        await client.aclose()


async def test_nobody_listens(client: httpx2.AsyncClient) -> None:
    with pytest.raises(httpx2.ConnectError):
        await client.get("http://127.0.0.1:1/")


async def test_an_address_is_reached_however_it_is_written(client: httpx2.AsyncClient) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)

    async with serving(handle) as port:
        for host in ("127.1", "2130706433", "0x7f.1", "localhost"):
            assert (await client.get(f"http://{host}:{port}/")).text == "ok"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1 and its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    here = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now() - timedelta(days=1))
        .not_valid_after(now() + timedelta(days=1))
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, raw = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = tmp_path_factory.mktemp("tls") / "here.pem"
    path.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, raw, serialization.NoEncryption()))
    return path


@pytest.mark.parametrize(("host", "is_trusted"), [("127.0.0.1", True), ("127.0.0.1", False), ("localhost", True)])
async def test_a_server_shows_who_it_is(
    client: httpx2.AsyncClient, certificate: Path, monkeypatch: pytest.MonkeyPatch, host: str, *, is_trusted: bool
) -> None:
    """By a certificate of an authority that is known, for the very name that was asked for."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    if is_trusted:
        known = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(transport, "_ssl_context", lambda: known)
    async with serving(handle, server) as port:
        if is_trusted and host == "127.0.0.1":
            assert (await client.get(f"https://{host}:{port}/")).text == "ok"
        else:
            with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
                await client.get(f"https://{host}:{port}/")
        await client.aclose()

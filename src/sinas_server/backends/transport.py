"""The transport of every outgoing HTTP client: aiohttp's connections under httpx's interface, each of them guarded.

httpx's own transport reads HTTP in Python, which takes three times aiohttp's processor time for a streamed answer.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache

import aiohttp
import httpx2
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from sinas_server.backends.net import ForbiddenAddressError, Refusal, literal, refuse_metadata, require, resolve
from sinas_server.kit.hosts import Address

KEEPALIVE_SECONDS = 30.0
GIVEN = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers that httpx has already decided about."""
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
FAILURES: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ClientOSError, httpx2.ReadError),
    (aiohttp.ClientError, httpx2.RemoteProtocolError),
)
"""The first that fits says what httpx calls a failure."""


class GuardedResolver(AbstractResolver):
    """Gives the addresses of a name, if all of them may be reached: aiohttp connects to these and asks no more."""

    def __init__(self, refuse: Refusal) -> None:
        self._refuse = refuse

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises `ForbiddenAddressError`, and `OSError` where there are none."""
        try:
            addresses = await resolve(host, port)
        except OSError as error:
            raise OSError(f"{host} cannot be resolved: {error.strerror}") from None
        for address in addresses:
            require(address, host, self._refuse)
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is kept."""


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Each new connection, redirects included, passes `refuse`."""

    def __init__(self, refuse: Refusal = refuse_metadata, *, max_connections: int = 100) -> None:
        self._refuse = refuse
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it. Raises `httpx2.TransportError` and `ForbiddenAddressError`."""
        content = await request.aread()
        with _failures(request):
            address = literal(request.url.host)
            if address is not None:
                require(address, request.url.host, self._refuse)
            response = await self._opened().request(
                request.method,
                _url(request.url, address),
                data=content or None,
                headers=_headers(request.headers),
                allow_redirects=False,
                timeout=_timeout(request.extensions.get("timeout") or {}),
            )
        return httpx2.Response(
            response.status,
            headers=list(response.raw_headers),
            stream=_Body(request, response),
            extensions={"reason_phrase": (response.reason or "").encode("ascii", errors="ignore")},
        )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=GuardedResolver(self._refuse),
                use_dns_cache=False,
                ssl=_ssl_context(),
                limit=self._max_connections,
                keepalive_timeout=KEEPALIVE_SECONDS,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=GIVEN,
            )
        return self._session

    async def aclose(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Body(httpx2.AsyncByteStream):
    """What is answered, as it comes."""

    def __init__(self, request: httpx2.Request, response: aiohttp.ClientResponse) -> None:
        self._request = request
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _failures(self._request):
            async for piece in self._response.content.iter_any():
                yield piece

    async def aclose(self) -> None:
        """Close the connection, unless the answer had ended: then it was given back."""
        self._response.close()


@contextmanager
def _failures(request: httpx2.Request) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, aiohttp.ClientError) as error:
        reason = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        if isinstance(reason, ForbiddenAddressError):
            raise reason from None
        kind = next((ours for theirs, ours in FAILURES if isinstance(error, theirs)), httpx2.ReadTimeout)
        raise kind(str(reason) or type(reason).__name__, request=request) from error


def _url(url: httpx2.URL, address: Address | None) -> URL:
    """Without a name and password, which httpx has made a header of; addresses in the one form that aiohttp takes."""
    path, _, query = url.raw_path.partition(b"?")
    return URL.build(
        scheme=url.scheme,
        host=url.raw_host.decode("ascii") if address is None else str(address),
        port=url.port,
        path=path.decode("ascii"),
        query_string=query.decode("ascii"),
        encoded=True,
    )


def _headers(headers: httpx2.Headers) -> list[tuple[str, str]]:
    """As they are, but for those that say how long the content is: aiohttp knows."""
    given = ((name, value) for name, value in headers.raw if name.lower() not in FRAMING)
    return [(name.decode("ascii"), value.decode(headers.encoding)) for name, value in given]


def _timeout(given: dict[str, float | None]) -> aiohttp.ClientTimeout:
    connect, pool = given.get("connect"), given.get("pool")
    both = None if connect is None or pool is None else connect + pool
    return aiohttp.ClientTimeout(total=None, connect=both, sock_connect=connect, sock_read=given.get("read"))


@cache
def _ssl_context() -> ssl.SSLContext:
    """One for the whole process: it takes tens of milliseconds to read all authorities, during which nothing runs."""
    return httpx2.create_ssl_context()

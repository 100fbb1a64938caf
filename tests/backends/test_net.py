"""Outgoing connections: metadata addresses in every spelling, and the address that was checked is the one used."""

import asyncio
import socket
from ipaddress import ip_address

import httpx2
import pytest

from sinas_server.backends.net import (
    ForbiddenAddressError,
    check_endpoint,
    refuse_metadata,
)
from sinas_server.backends.transport import GuardedTransport
from sinas_server.kit.hosts import Address
from tests.fakes.llm_server import FakeLLM


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
    ],
)
def test_metadata_addresses(address: str) -> None:
    assert refuse_metadata(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ForbiddenAddressError):
        check_endpoint(f"http://{host}:80/latest")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.10", "::1", "fd12::1", "8.8.8.8", "2606:4700::1"]
)
def test_private_and_public_addresses_are_fine(address: str) -> None:
    assert refuse_metadata(ip_address(address)) is None
    check_endpoint(f"http://[{address}]/v1" if ":" in address else f"https://{address}/v1")


@pytest.mark.parametrize("url", ["metadata.google.internal", "http:///x", "file:///etc/passwd", "http://a:b/", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r"http or https|Port"):
        check_endpoint(url)


@pytest.mark.parametrize("host", ["metadata", "METADATA.google.internal", "metadata.google.internal."])
def test_metadata_names(host: str) -> None:
    with pytest.raises(ForbiddenAddressError):
        check_endpoint(f"http://{host}/")


async def test_a_second_answer_of_the_resolver_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["127.0.0.1", "169.254.169.254"]
    asked: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: str, port: int, *rest: int, **more: int) -> object:
        if host != "rebind.test":
            return real(host, port, *rest, **more)
        asked.append(host)
        return real(answers[len(asked) - 1], port, *rest, **more)

    async with FakeLLM() as fake:
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        url = f"http://rebind.test:{fake.port}/v1/models"
        async with httpx2.AsyncClient(transport=GuardedTransport()) as client:
            assert (await client.get(url)).status_code == 200
            assert (await client.get(url)).status_code == 200  # the connection is kept: no second look-up
            assert asked == ["rebind.test"]
        async with httpx2.AsyncClient(transport=GuardedTransport()) as client:
            with pytest.raises(ForbiddenAddressError, match=r"rebind\.test \(169\.254\.169\.254\)"):
                await client.get(url)


async def test_other_rules_can_be_given() -> None:
    def only_public(address: Address) -> str | None:
        return None if address.is_global else "it is not public"

    async with FakeLLM() as fake, httpx2.AsyncClient(transport=GuardedTransport(only_public)) as client:
        with pytest.raises(ForbiddenAddressError, match="it is not public"):
            await client.get(fake.url + "/v1/models")


async def test_redirects_are_checked_too() -> None:
    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 X\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    async with server, httpx2.AsyncClient(transport=GuardedTransport(), follow_redirects=True) as client:
        with pytest.raises(ForbiddenAddressError):
            await client.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

"""Outgoing connections: which addresses may be reached, checked on the very address a name resolved to."""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TypeAlias
from urllib.parse import urlsplit

from sinas_server.kit.hosts import Address

Refusal: TypeAlias = Callable[[Address], str | None]
"""Says why an address may not be reached, or None when it may."""

METADATA_NETWORKS = tuple(
    ip_network(network)
    for network in (
        "169.254.0.0/16",  # AWS, Azure, Google, Oracle and the rest; AWS tasks and pods
        "168.63.129.16/32",  # Azure's host
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
    )
)
METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"})
_NAT64 = ip_network("64:ff9b::/96")


class ForbiddenAddressError(OSError):
    """The address may not be reached; the message says which and why."""


def embedded_ipv4(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def refuse_metadata(address: Address) -> str | None:
    """Refuse the addresses where clouds hand out a machine's credentials; every other address may be reached."""
    real = embedded_ipv4(address)
    if any(real in network for network in METADATA_NETWORKS):
        return "it is a cloud metadata address"
    return None


def literal(host: str) -> Address | None:
    """The address that a host is written as, in whatever form the system takes for one; None for a name."""
    with contextlib.suppress(ValueError):
        return ip_address(host)
    with contextlib.suppress(OSError, UnicodeError):
        return IPv4Address(socket.inet_aton(host))  # such as 127.1, or a single number
    return None


def refuse_private(address: Address) -> str | None:
    """Why an address is not one of the public internet, as the end of a sentence; None if it is."""
    if not address.is_global or address.is_multicast:
        return "not a public address"
    return "an address of this machine" if _is_ours(address) else None


def _is_ours(address: Address) -> bool:
    """Whether the address belongs to this machine: only such an address can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))
        return True
    return False


def check_endpoint(url: str) -> None:
    """Accept a URL that an administrator set, without resolving it. Raises `ForbiddenAddressError` or `ValueError`."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is not an http or https URL")
    _ = parts.port  # raises ValueError when it is not a port
    host = parts.hostname.rstrip(".").lower()
    if host in METADATA_NAMES:
        raise ForbiddenAddressError(f"{host} may not be reached: it is a cloud metadata address")
    address = literal(host)
    if address is not None:
        require(address, host, refuse_metadata)


def require(address: Address, host: str, refuse: Refusal) -> None:
    """Raises `ForbiddenAddressError` for an address of `host` that may not be reached."""
    reason = refuse(address)
    if reason is not None:
        name = host if host == str(address) else f"{host} ({address})"
        raise ForbiddenAddressError(f"{name} may not be reached: {reason}")


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, in the resolver's order. Raises `OSError` when there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(entry[4][0]).split("%")[0]) for entry in found]

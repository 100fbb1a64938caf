"""Lists of hosts that may be reached: names, addresses and networks, as operators write them."""

import contextlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
NAME = re.compile(r"[\w-]+(\.[\w-]+)*")


@dataclass(frozen=True)
class Rule:
    """One entry of a list of hosts that may be reached."""

    host: str
    """Lower case; empty for a network."""
    below: bool
    """Also every name below the host."""
    network: IPv4Network | IPv6Network | None
    port: int | None

    def names(self, host: str, port: int) -> bool:
        """Whether the entry names this host."""
        if not self.host or self.port not in {None, port}:
            return False
        return host.endswith(f".{self.host}") if self.below else host == self.host

    def holds(self, address: Address, port: int) -> bool:
        """Whether the entry holds this address."""
        return self.network is not None and self.port in {None, port} and address in self.network


def parse_rule(text: str) -> Rule:
    """`api.example.com`, `*.example.com`, `10.0.0.5`, `10.1.0.0/16` or `[fd00::]/8`, with an optional `:port`.

    Raises `ValueError`.
    """
    entry, port = text.strip().lower(), None
    if entry.count(":") == 1 or "]:" in entry:
        entry, _, number = entry.rpartition(":")
        if not number.isdecimal() or not 0 < int(number) < 1 << 16:
            raise ValueError(f"{text!r} names no port after its colon")
        port = int(number)
    entry = entry.replace("[", "").replace("]", "")
    with contextlib.suppress(ValueError):
        return Rule("", False, ip_network(entry, strict=False), port)
    host = entry.removeprefix("*.").rstrip(".")
    if not NAME.fullmatch(host):
        raise ValueError(f"{text!r} is no host name, address or network")
    return Rule(host, entry.startswith("*."), None, port)

"""From the addresses that a client was given to the servers behind them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from enginehouse.errors import InvalidArgumentError

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""The IP addresses of a host name."""


@dataclass(frozen=True)
class Target:
    """A server. `name`: what its certificate is for, where the address does not say it."""

    address: str
    name: str = ""


def split_addresses(given: str | Iterable[str]) -> tuple[str, ...]:
    """Addresses from one text with commas between them, or from several texts; each once, in their order.

    Raises:
        InvalidArgumentError: there is none.
    """
    texts = [given] if isinstance(given, str) else list(given)
    found = tuple(dict.fromkeys(part.strip() for text in texts for part in text.split(",") if part.strip()))
    if not found:
        raise InvalidArgumentError('no address of an inference server: expected "host:port", or several of them')
    return found


def host_of(address: str) -> tuple[str, int] | None:
    """The host name and port of an address that may stand for several servers; None where it is one server."""
    host, _, port = address.rpartition(":")
    # Other schemes (unix:, dns:///, ipv4:) are gRPC's to understand.
    if not host or not port.isdigit() or "/" in host or ":" in host or host == "localhost":
        return None
    try:
        ipaddress.ip_address(host)
        return None
    except ValueError:
        return host, int(port)


async def look_up(host: str, port: int) -> Sequence[str]:
    """The IP addresses of a name: IPv4's where there are any, because both kinds may lead to the same server."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    four = [item[4][0] for item in found if item[0] == socket.AF_INET]
    six = [item[4][0] for item in found if item[0] == socket.AF_INET6]
    return list(dict.fromkeys(str(ip) for ip in four or six))


class Discovery:
    """The servers behind some addresses. A name of one server stays a name, which gRPC resolves itself."""

    def __init__(self, addresses: Sequence[str], look: LookUp = look_up) -> None:
        self._addresses = tuple(addresses)
        self._look = look
        self._known: dict[str, tuple[Target, ...]] = {}

    @property
    def changes(self) -> bool:
        """Whether the servers may change: some address is a name."""
        return any(host_of(address) for address in self._addresses)

    async def targets(self) -> tuple[Target, ...]:
        """The servers now. A name that cannot be looked up stands for what it stood for before."""
        lists = await asyncio.gather(*(self._targets_of(address) for address in self._addresses))
        return tuple(dict.fromkeys(target for found in lists for target in found))

    async def _targets_of(self, address: str) -> tuple[Target, ...]:
        named = host_of(address)
        if named is None:
            return (Target(address),)
        host, port = named
        try:
            ips = sorted(await self._look(host, port))
        except OSError:
            ips = []
        if len(ips) > 1:
            self._known[address] = tuple(
                Target(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", name=host) for ip in ips
            )
        elif ips:
            self._known[address] = (Target(address),)
        return self._known.get(address, (Target(address),))

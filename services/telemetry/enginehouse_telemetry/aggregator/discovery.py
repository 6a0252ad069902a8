"""Where the agents are. A source gives the whole set whenever it changes; names are looked up again and again."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

_log = structlog.get_logger("discovery")

LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""The IP addresses of a host name."""


@dataclass(frozen=True, order=True)
class AgentAddress:
    """An agent. `node`: its node's name, where the source knows it."""

    address: str
    node: str = ""


class AgentSource(Protocol):
    """Finds agents."""

    def watch(self) -> AsyncIterator[frozenset[AgentAddress]]:
        """All agents, and all again whenever they change. It never ends, and has patience with what fails."""


def split_addresses(text: str) -> tuple[tuple[str, int], ...]:
    """Host and port of each address in a list with commas.

    Raises:
        ValueError: one is no "host:port".
    """
    found = []
    for part in (part.strip() for part in text.split(",")):
        host, _, port = part.rpartition(":")
        if not part:
            continue
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f'agent {part!r} is not valid: expected "host:port"')
        found.append((host.strip("[]"), int(port)))
    return tuple(dict.fromkeys(found))


def join(host: str, port: int) -> str:
    """An address as gRPC takes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def look_up(host: str, port: int) -> Sequence[str]:
    """The IP addresses of a name: IPv4's where there are any, because both kinds may lead to the same agent."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    four = [item[4][0] for item in found if item[0] == socket.AF_INET]
    six = [item[4][0] for item in found if item[0] == socket.AF_INET6]
    return [str(ip) for ip in four or six]


class ListedAgents:
    """Agents from a list. A name that cannot be looked up stands for what it stood for before."""

    def __init__(self, addresses: Sequence[tuple[str, int]], period: float, look: LookUp = look_up) -> None:
        self._addresses, self._period, self._look = tuple(addresses), period, look
        self._known: dict[tuple[str, int], Sequence[str]] = {}

    async def watch(self) -> AsyncIterator[frozenset[AgentAddress]]:
        before: frozenset[AgentAddress] | None = None
        while True:
            hosts = await asyncio.gather(*(self._hosts(host, port) for host, port in self._addresses))
            found = frozenset(
                AgentAddress(join(ip, port))
                for (_, port), ips in zip(self._addresses, hosts, strict=True)
                for ip in ips
            )
            if found != before:
                before = found
                yield found
            if all(_is_ip(host) for host, _ in self._addresses):
                await asyncio.Event().wait()  # nothing can change
            await asyncio.sleep(self._period)

    async def _hosts(self, host: str, port: int) -> Sequence[str]:
        if _is_ip(host):
            return (host,)
        try:
            self._known[host, port] = tuple(dict.fromkeys(await self._look(host, port)))
        except OSError as error:
            _log.warning("a name cannot be looked up", name=host, error=str(error))
        return self._known.get((host, port), ())


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

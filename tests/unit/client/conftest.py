"""Servers and clients for the tests here; makes `client_servers`, and what tests of `rpc` use, importable."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from enginehouse import AsyncClient, Client
from enginehouse.client.portal import Portal

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[1] / "rpc"))

from client_servers import Servers


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    running = Servers()
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(servers: Servers) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(servers.address, servers.address, servers.address, timeout=5) as client:
        yield client


@pytest.fixture
def sync_servers() -> Iterator[Servers]:
    """Servers in a loop of their own, for the synchronous client."""
    portal, running = Portal(), Servers()
    portal.run(running.start())
    yield running
    portal.run(running.stop())
    portal.close()


@pytest.fixture
def sync_client(sync_servers: Servers) -> Iterator[Client]:
    address = sync_servers.address
    with Client(address, address, address, timeout=5) as client:
        yield client

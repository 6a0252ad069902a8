"""The servers of a client, as they come and go."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from enginehouse.client.balancing.discovery import Discovery, Target
from enginehouse.client.balancing.policy import Balancing
from enginehouse.client.balancing.servers import Server
from enginehouse.client.connection import CLOSED, TLS, Endpoint
from enginehouse.client.owner import LoopOwner
from enginehouse.errors import DeadlineExceededError, FailedPreconditionError
from enginehouse.rpc.channels import Token

# Between questions to a server that is down.
FIRST_PROBE_SECONDS = 0.1
MAX_PROBE_SECONDS = 2.0
# Failed calls ask for a look-up of names at most this often.
MIN_RESOLVE_SECONDS = 1.0

Probe = Callable[[Server], Awaitable[bool]]
"""Asks a server whether it can work. Returns within seconds, and raises nothing."""


class Pool:
    """The servers behind a client's addresses. Channels are made when they are first used.

    It belongs to the event loop that uses it; in another one, or after a fork, it begins anew.

    Args:
        timeout: seconds that a call may take.
        probe: asks a server that was down.
        token: goes with every call.
    """

    def __init__(
        self,
        discovery: Discovery,
        policy: Balancing,
        *,
        timeout: float,
        tls: TLS | None,
        probe: Probe,
        token: Token | None = None,
        dice: random.Random | None = None,
    ) -> None:
        self.timeout = timeout
        self.dice = dice or random.Random()
        self._policy = policy
        self._discovery = discovery
        self.tls = tls
        self._token = token
        self._probe = probe
        self._servers: dict[tuple[Target, int], Server] = {}
        self._retired: set[Server] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._resolving: asyncio.Task[None] | None = None
        self._resolved = float("-inf")
        self._owner: LoopOwner | None = None
        self._closed = False

    async def servers(self, within: float | None = None) -> Sequence[Server]:
        """The servers to choose from; at least one.

        Args:
            within: seconds that the first look-up of names may take; the client's own timeout when None.

        Raises:
            DeadlineExceededError: it takes longer.
            FailedPreconditionError: the client is closed.
        """
        if self._closed:
            raise FailedPreconditionError(CLOSED)
        self._adopt()
        now = asyncio.get_running_loop().time()
        if not self._servers:
            try:
                await asyncio.wait_for(self._resolve(), self.timeout if within is None else within)
            except asyncio.TimeoutError:
                raise DeadlineExceededError("the inference servers' names could not be looked up in time") from None
        elif self._discovery.changes and now - self._resolved >= self._policy.resolve_interval:
            self.look_again()
        self._renew(now)
        return list(self._servers.values())

    def take(self, server: Server) -> None:
        """A request goes to a server; `put_back` follows when it has its answer."""
        server.outstanding += 1

    def put_back(self, server: Server) -> None:
        """A request to a server has ended."""
        server.outstanding -= 1
        if server.outstanding == 0 and server in self._retired:
            self._retired.discard(server)
            self._spawn(_close(server))

    def watch(self, server: Server) -> None:
        """A server went down: ask it until it is back, and look whether others came in its place."""
        self.look_again()
        self._spawn(self._until_up(server))

    def look_again(self) -> None:
        """Look up names, in the background, unless that was done just now."""
        now = asyncio.get_running_loop().time()
        if self._discovery.changes and now - self._resolved >= MIN_RESOLVE_SECONDS and self._resolving is None:
            self._resolved = now
            self._spawn(self._resolve())

    async def suspend(self) -> None:
        """Close the channels until they are next used."""
        self._adopt()
        tasks, self._tasks = list(self._tasks), set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._resolving = None
        for server in (*self._servers.values(), *self._retired):
            server.forget()
            await server.endpoint.suspend()
        self._retired.clear()

    async def close(self) -> None:
        """Close the channels; calls in flight are cancelled."""
        self._closed = True
        await self.suspend()
        await asyncio.gather(*(_close(server) for server in self._servers.values()))

    def _adopt(self) -> None:
        if self._owner is not None and self._owner.runs:
            return
        self._owner = LoopOwner()
        self._tasks, self._retired, self._resolving = set(), set(), None
        self._resolved = float("-inf")
        for server in self._servers.values():
            server.forget()

    async def _resolve(self) -> None:
        """Look up the servers; calls that come meanwhile wait for the same look-up."""
        if self._resolving is None:
            self._resolving = asyncio.get_running_loop().create_task(self._refresh())
            self._tasks.add(self._resolving)
            self._resolving.add_done_callback(self._resolving_ended)
        await asyncio.shield(self._resolving)

    def _resolving_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._resolving is task:
            self._resolving = None

    async def _refresh(self) -> None:
        targets = await self._discovery.targets()
        now = asyncio.get_running_loop().time()
        self._resolved = now
        wanted = {(target, number) for target in targets for number in range(self._policy.connections)}
        for key in [key for key in self._servers if key not in wanted]:
            self._retire(self._servers.pop(key))
        for target in targets:
            for number in range(self._policy.connections):
                if (target, number) not in self._servers:
                    self._servers[target, number] = self._connect(target, now)

    def _renew(self, now: float) -> None:
        for key, server in self._servers.items():
            if now - server.born > self._policy.max_connection_age and not server.down:
                self._servers[key] = self._connect(key[0], now)
                self._retire(server)

    def _connect(self, target: Target, now: float) -> Server:
        tls = self.tls
        if tls is not None and target.name and not tls.server_name:
            tls = dataclasses.replace(tls, server_name=target.name)
        endpoint = Endpoint(target.address, timeout=self.timeout, tls=tls, token=self._token, own_connection=True)
        # So that not all connections are replaced at once.
        return Server(endpoint, born=now - self.dice.uniform(0, 0.1) * self._policy.max_connection_age)

    def _retire(self, server: Server) -> None:
        if server.outstanding:
            self._retired.add(server)
        else:
            self._spawn(_close(server))

    async def _until_up(self, server: Server) -> None:
        pause = FIRST_PROBE_SECONDS
        while server.down and server in self._servers.values():
            await asyncio.sleep(pause * (0.75 + 0.5 * self.dice.random()))
            if await self._probe(server):
                server.down = False
            pause = min(MAX_PROBE_SECONDS, pause * 1.6)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _close(server: Server) -> None:
    await server.memory.close()
    await server.endpoint.close()

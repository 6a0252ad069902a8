"""Inference servers of a simulation: they take time, refuse, lack models, die with what they do, and come back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from enginehouse.client.balancing.calls import Balancer, Call
from enginehouse.client.balancing.discovery import Discovery
from enginehouse.client.balancing.failures import Failure, kind_of
from enginehouse.client.balancing.policy import Balancing
from enginehouse.client.balancing.pool import Pool
from enginehouse.client.balancing.servers import Server
from enginehouse.errors import (
    DeadlineExceededError,
    EnginehouseError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)


@dataclass
class Simulated:
    """One server.

    Attributes:
        seconds: that it computes on a request.
        places: requests that it works on at once; more are refused.
        models: that it has; None is every one.
        dead_until: when it comes back.
        raises: answers every request with this.
    """

    seconds: float = 0.01
    places: int = 1000
    models: set[str] | None = None
    dead_until: float = 0.0
    raises: EnginehouseError | None = None
    running: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    began: list[tuple[float, int]] = field(default_factory=list)
    done: Counter[int] = field(default_factory=Counter)
    most: int = 0

    def die(self, seconds: float) -> None:
        """Die with everything that runs, and be away for so long."""
        self.dead_until = asyncio.get_running_loop().time() + seconds
        for ended in self.running.values():
            if not ended.done():
                ended.set_exception(UnavailableError("Socket closed"))

    async def infer(self, request: int, model: str, timeout: float) -> int:
        loop = asyncio.get_running_loop()
        if self.dead_until > loop.time():
            await asyncio.sleep(0.0005)
            raise Failure(
                UnavailableError("failed to connect"), kind_of(UnavailableError("failed to connect"), connected=False)
            )
        self.began.append((loop.time(), request))
        error = self.raises
        if self.models is not None and model not in self.models:
            error = NotFoundError(f"no model {model}")
        elif len(self.running) >= self.places:
            error = ResourceExhaustedError("full", retry_after_seconds=0.1)
        if error is not None:
            raise Failure(error, kind_of(error))
        ended: asyncio.Future[None] = loop.create_future()
        self.running[request] = ended
        self.most = max(self.most, len(self.running))
        try:
            await asyncio.wait_for(ended, min(self.seconds, timeout))
        except asyncio.TimeoutError:
            if timeout < self.seconds:
                late = DeadlineExceededError("late")
                raise Failure(late, kind_of(late)) from None
        except UnavailableError as lost:
            raise Failure(lost, kind_of(lost)) from None
        finally:
            del self.running[request]
        self.done[request] += 1
        return request


class World:
    """A client's balancer over simulated servers, "10.0.0.1:1" and so on."""

    def __init__(self, servers: list[Simulated], policy: Balancing | None = None, seed: int = 0) -> None:
        self.policy = policy or Balancing()
        self.addresses = [f"10.0.0.{n + 1}:1" for n in range(len(servers))]
        self.servers = dict(zip(self.addresses, servers, strict=True))
        self.discovery = Discovery(self.addresses)
        self.pool = Pool(
            self.discovery, self.policy, timeout=30.0, tls=None, probe=self._probe, dice=random.Random(seed)
        )
        self.balancer = Balancer(self.pool, self.policy)

    async def infer(self, request: int, *, model: str = "m", timeout: float = 30.0, exclusive: bool = False) -> int:
        async def send(server: Server, left: float) -> int:
            assert left > 0
            return await self.servers[server.address].infer(request, model, left)

        return await self.balancer.run(Call(model, send, exclusive), timeout)

    async def _probe(self, server: Server) -> bool:
        return self.servers[server.address].dead_until <= asyncio.get_running_loop().time()

    @property
    def sends(self) -> int:
        """How many requests came to the servers that lived."""
        return sum(len(server.began) for server in self.servers.values())

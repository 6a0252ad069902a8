"""One request over a pool of servers: choose, send, send again, hedge; never past the deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from enginehouse.client.balancing.budget import RetryBudget
from enginehouse.client.balancing.choice import choose, well
from enginehouse.client.balancing.decisions import Situation, Step, next_step
from enginehouse.client.balancing.failures import Failure, Kind
from enginehouse.client.balancing.policy import Balancing
from enginehouse.client.balancing.pool import Pool
from enginehouse.client.balancing.servers import Server
from enginehouse.errors import DeadlineExceededError, EnginehouseError, FailedPreconditionError

_R = TypeVar("_R")

Send = Callable[[Server, float], Awaitable[_R]]
"""Sends a request to a server, with the seconds that are left. Raises `Failure`."""


@dataclass(frozen=True)
class Call(Generic[_R]):
    """A request.

    Attributes:
        key: what it is about: servers fail for one model and work for another.
        send: sends it.
        exclusive: no two servers may ever work on it: it is not hedged, nor sent again once it may have begun.
        usable: which servers may get it; all when None. `else_say` what is missing where there is none.
    """

    key: Hashable
    send: Send[_R]
    exclusive: bool = False
    usable: Callable[[Server], bool] | None = None
    else_say: str = ""


class Balancer:
    """Carries out requests over a pool, as a policy says."""

    def __init__(self, pool: Pool, policy: Balancing) -> None:
        self.pool = pool
        self._policy = policy
        self._budget = RetryBudget(policy.retry.budget_ratio, policy.retry.budget_burst)

    async def run(self, call: Call[_R], timeout: float | None = None) -> _R:
        """Carry out a request; `timeout` in seconds for all tries together, the client's own when None.

        Raises:
            EnginehouseError: of the last try.
            FailedPreconditionError: no server may get it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.pool.timeout if timeout is None else timeout)
        self._budget.request()
        progress = _Progress()
        while True:
            servers = await self.candidates(call, deadline - loop.time())
            server = self._choose(progress.fresh(servers) or servers, call.key)
            try:
                if not call.exclusive and self._policy.hedging is not None and len(servers) > 1:
                    return await self._hedged(call, server, servers, progress, deadline)
                return await self._send(call, server, progress, deadline)
            except Failure as failure:
                step = self._after(failure, await self.candidates(call, self.pool.timeout), call, progress, deadline)
                if step is None:
                    raise progress.told(failure.error) from None
            if step.new_round:
                await asyncio.sleep(step.wait)
                progress.next_round()

    async def candidates(self, call: Call[_R], within: float) -> Sequence[Server]:
        """The servers that may get a request, found `within` so many seconds.

        Raises:
            FailedPreconditionError: there is none.
            DeadlineExceededError: looking them up takes longer.
        """
        servers = await self.pool.servers(within)
        if call.usable is None:
            return servers
        usable = [server for server in servers if call.usable(server)]
        if not usable:
            raise FailedPreconditionError(call.else_say)
        return usable

    def choose(self, servers: Sequence[Server], key: Hashable) -> Server:
        """The server for something that stays with one, such as a stream."""
        return self._choose(servers, key)

    def failed(self, server: Server, key: Hashable, failure: Failure) -> None:
        """A server did not answer as it should have."""
        was_down = server.down
        now = asyncio.get_running_loop().time()
        server.failed(key, failure.kind, failure.error.retry_after_seconds, now)
        if server.down and not was_down:
            self.pool.watch(server)

    def _choose(self, servers: Sequence[Server], key: Hashable) -> Server:
        if len(servers) == 1:
            return servers[0]
        return choose(servers, key, asyncio.get_running_loop().time(), self.pool.dice)

    async def _send(self, call: Call[_R], server: Server, progress: _Progress, deadline: float) -> _R:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise Failure(DeadlineExceededError("the deadline passed before the request was sent"), Kind.FINAL)
        progress.sent(server)
        self.pool.take(server)
        try:
            result = await call.send(server, left)
        except Failure as failure:
            progress.failed(server, failure.kind)
            self.failed(server, call.key, failure)
            raise
        finally:
            self.pool.put_back(server)
        server.succeeded(call.key)
        return result

    async def _hedged(
        self, call: Call[_R], server: Server, servers: Sequence[Server], progress: _Progress, deadline: float
    ) -> _R:
        """The first answer of several servers. A failure counts once no other server is still at it."""
        hedging = self._policy.hedging
        assert hedging is not None
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(self._send(call, server, progress, deadline))}
        extra = hedging.max_extra
        failure: Failure | None = None
        try:
            while tasks:
                done, _ = await asyncio.wait(
                    tasks, timeout=hedging.delay if extra else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    tasks.discard(task)
                    try:
                        return task.result()
                    except Failure as error:
                        failure = error
                        if error.kind in (Kind.FINAL, Kind.FAULTY):
                            raise
                if not done and extra:
                    others = progress.fresh(well(servers, call.key, loop.time()))
                    if not others or not self._budget.take():
                        extra = 0
                        continue
                    extra -= 1
                    other = self._choose(others, call.key)
                    tasks.add(loop.create_task(self._send(call, other, progress, deadline)))
            assert failure is not None
            raise failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _after(
        self, failure: Failure, servers: Sequence[Server], call: Call[_R], progress: _Progress, deadline: float
    ) -> Step | None:
        now, key = asyncio.get_running_loop().time(), call.key
        untried = [s for s in progress.fresh(servers) if not s.down]
        if failure.kind is not Kind.ABSENT:
            untried = well(untried, key, now)
        waits = [s.avoided_for(key, now) for s in servers if not s.down] or [0.0]
        situation = Situation(
            kind=failure.kind,
            sent=progress.sends - progress.absent,
            rounds=progress.rounds,
            lost=len(progress.lost),
            elsewhere=bool(untried),
            several=not call.exclusive and any(server.address not in progress.lost for server in servers),
            retry_after=min(waits),
            remaining=deadline - now,
        )
        step = next_step(situation, self._policy.retry, self.pool.dice.random())
        if step is not None and step.costs and not self._budget.take():
            return None
        return step


class _Progress:
    """What happened to a request so far. Connections to one address are one server here.

    Attributes:
        sends: how often it was sent.
        absent: how often of these the server did not have the model.
        rounds: how often every server was tried.
        lost: where it got lost.
    """

    def __init__(self) -> None:
        self.sends = 0
        self.absent = 0
        self.rounds = 1
        self.lost: list[str] = []
        self._tried: list[str] = []
        self._addresses: list[str] = []

    def sent(self, server: Server) -> None:
        self.sends += 1
        self._tried.append(server.address)
        self._addresses.append(server.address)

    def failed(self, server: Server, kind: Kind) -> None:
        if kind is Kind.LOST:
            self.lost.append(server.address)
        elif kind is Kind.ABSENT:
            self.absent += 1

    def next_round(self) -> None:
        """Every server may be tried again, but those that it got lost on."""
        self.rounds += 1
        self._tried = list(self.lost)

    def fresh(self, servers: Sequence[Server]) -> Sequence[Server]:
        """Those that were not tried in this round."""
        return [server for server in servers if server.address not in self._tried] if self._tried else servers

    def told(self, error: EnginehouseError) -> EnginehouseError:
        """The error for the caller, which says where the request was tried if not at one server once."""
        places = list(dict.fromkeys(self._addresses))
        if self.sends < 2:
            return error
        return type(error)(
            f"{error.message} [tried {self.sends} times, at {', '.join(places)}]",
            details=error.details,
            retry_after_seconds=error.retry_after_seconds,
        )

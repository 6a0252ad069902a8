"""All agents' streams: opened and closed as discovery says, their samples handed to the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from enginehouse.rpc.channels import Credentials
from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse_telemetry.aggregator.agent_stream import AgentStream
from enginehouse_telemetry.aggregator.cluster import Cluster
from enginehouse_telemetry.aggregator.discovery import AgentAddress, AgentSource
from enginehouse_telemetry.aggregator.pacer import Pacer

# Waits before discovery is begun again after a failure that it did not foresee.
_DISCOVERY_WAIT = 5.0

_log = structlog.get_logger("crowd")


@dataclass
class _Member:
    """An agent: its stream, the task that runs it, and the id of its node once that is known."""

    stream: AgentStream
    task: asyncio.Task[None]
    node: str


@dataclass
class Counts:
    """What came from the agents. `skipped`: samples that agents left out because we were slow."""

    samples: int = 0
    bytes: int = 0
    skipped: int = 0
    # Sum and greatest of received minus taken, in seconds: clocks of two machines, so NTP's error is in it.
    lag_sum: float = 0.0
    lag_max: float = 0.0
    reconnects: int = 0


class Crowd:
    """Keeps a stream to every agent. Counts may be read from any thread, hence the copies of what changes."""

    def __init__(
        self,
        cluster: Cluster,
        credentials: Credentials,
        request: pb.StreamSamplesRequest,
        *,
        pacer: Pacer,
        max_agents: int,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._cluster, self._credentials, self._request = cluster, credentials, request
        self._pacer, self._max_agents, self._wall = pacer, max_agents, wall
        self._members: dict[str, _Member] = {}
        self._found = asyncio.Event()
        self.counts = Counts()

    @property
    def agents(self) -> int:
        """How many are known."""
        return len(self._members)

    @property
    def connected(self) -> int:
        """How many of them send."""
        return sum(member.stream.connected for member in list(self._members.values()))

    @property
    def reconnects(self) -> int:
        """Streams that ended, in all."""
        return self.counts.reconnects + sum(member.stream.reconnects for member in list(self._members.values()))

    def listed(self) -> set[str]:
        """Ids of the nodes whose agents are known."""
        return {member.node for member in self._members.values() if member.node}

    async def wait_for_agents(self, timeout: float) -> bool:
        """Wait until discovery has answered, with none perhaps; False when it has not after `timeout` seconds."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._found.wait(), timeout)
        return self._found.is_set()

    async def follow(self, source: AgentSource) -> None:
        """Follow discovery until cancelled."""
        while True:
            try:
                async for agents in source.watch():
                    await self.become(agents)
                    self._found.set()
            except Exception:
                # Whatever an API server answers, the agents that are known go on.
                _log.exception("discovery failed")
            await asyncio.sleep(_DISCOVERY_WAIT)

    async def become(self, agents: frozenset[AgentAddress]) -> None:
        """Have a stream to each of these, and to no other."""
        wanted = {agent.address: agent for agent in sorted(agents)[: self._max_agents]}
        if len(agents) > self._max_agents:
            _log.error("more agents than ENGINEHOUSE_MAX_NODES", agents=len(agents), most=self._max_agents)
        gone = [address for address in self._members if address not in wanted]
        new = [agent for address, agent in wanted.items() if address not in self._members]
        if gone or new:
            _log.info("agents", known=len(wanted), new=len(new), gone=len(gone))
        await self._leave(gone)
        for agent in new:
            self._join(agent)

    async def close(self) -> None:
        """End every stream."""
        await self._leave(list(self._members))

    def _join(self, agent: AgentAddress) -> None:
        if agent.node:
            self._cluster.meet(agent.node, agent.address)
        stream = AgentStream(
            agent.address,
            self._credentials,
            self._request,
            pacer=self._pacer,
            on_response=self._take,
            on_problem=lambda problem: self._problem(agent.address, problem),
        )
        self._members[agent.address] = _Member(stream, asyncio.create_task(stream.run()), agent.node)

    async def _leave(self, addresses: list[str]) -> None:
        members = [self._members.pop(address) for address in addresses]
        for member in members:
            member.task.cancel()
            self.counts.reconnects += member.stream.reconnects
        await asyncio.gather(*(member.task for member in members), return_exceptions=True)

    def _take(self, response: pb.StreamSamplesResponse, size: int, address: str) -> None:
        sample, counts = response.sample, self.counts
        node = self._cluster.take(sample, size, address)
        counts.samples += 1
        counts.bytes += size
        counts.skipped += response.skipped
        lag = self._wall() - sample.time.seconds - sample.time.nanos / 1e9
        counts.lag_sum += lag
        counts.lag_max = max(counts.lag_max, lag)
        if node is not None:
            member = self._members.get(address)
            if member is not None:
                member.node = node.id

    def _problem(self, address: str, problem: str) -> None:
        member = self._members.get(address)
        if member is None or not member.node:
            _log.warning("an agent does not answer", address=address, problem=problem)
            return
        node = self._cluster.meet(member.node, address)
        # Another agent may have taken this one's place on the node.
        if node is not None and node.address in ("", address):
            node.problem = problem

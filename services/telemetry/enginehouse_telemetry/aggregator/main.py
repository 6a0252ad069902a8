"""The `enginehouse-telemetry-aggregator` command: reads the settings and serves until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog
import uvloop

from enginehouse.rpc.announce import announce_file
from enginehouse.rpc.channels import TLS, Credentials, Token
from enginehouse.rpc.entry import run_service
from enginehouse.rpc.metrics_server import MetricsServer
from enginehouse.rpc.server import RpcServer, Service, run_until_signalled
from enginehouse.v1 import telemetry_cluster_pb2_grpc as pb_grpc
from enginehouse.v1 import telemetry_pb2 as pb
from enginehouse_telemetry.aggregator.cluster import Cluster
from enginehouse_telemetry.aggregator.consumers import Consumers
from enginehouse_telemetry.aggregator.crowd import Crowd
from enginehouse_telemetry.aggregator.discovery import AgentSource, ListedAgents, split_addresses
from enginehouse_telemetry.aggregator.endpoint_slices import parse_service
from enginehouse_telemetry.aggregator.metrics import ClusterMetrics
from enginehouse_telemetry.aggregator.pacer import Pacer
from enginehouse_telemetry.aggregator.service import ClusterService
from enginehouse_telemetry.aggregator.service_agents import ServiceAgents, kubernetes_api
from enginehouse_telemetry.aggregator.settings import AggregatorSettings

SERVICE = "enginehouse.v1.ClusterTelemetry"

# An aggregator that does not know its agents after so long is ready nevertheless, and says so in its log.
DISCOVERY_SECONDS = 10.0
SWEEP_SECONDS = 0.5
# A node is not late before so many intervals.
LATE_INTERVALS = 3

_log = structlog.get_logger("aggregator")


class Aggregator:
    """The parts of the service, wired together."""

    def __init__(self, settings: AggregatorSettings, announce: Callable[[Mapping[str, int]], None]) -> None:
        self._settings, self._announce = settings, announce
        parent = f"projects/{settings.project}"
        self._consumers = Consumers(settings.interval_seconds)
        late = max(settings.late_seconds, LATE_INTERVALS * settings.interval_seconds)
        self._cluster = Cluster(
            parent,
            late=late,
            lost=max(settings.lost_seconds, late),
            max_nodes=settings.max_nodes,
            on_change=self._consumers.publish,
        )
        request = pb.StreamSamplesRequest(parent=parent, queue=1)
        request.period.FromNanoseconds(int(settings.interval_seconds * 1e9))
        self._pacer = Pacer(settings.interval_seconds)
        credentials = _credentials(settings)
        self._crowd = Crowd(self._cluster, credentials, request, pacer=self._pacer, max_agents=settings.max_nodes)
        self._source = _source(settings)
        service = ClusterService(
            self._cluster,
            self._consumers,
            project=settings.project,
            slow_seconds=settings.slow_consumer_seconds,
        )
        self._server = RpcServer(
            settings, [Service(SERVICE, lambda server: pb_grpc.add_ClusterTelemetryServicer_to_server(service, server))]
        )
        self._metrics: MetricsServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve until signalled."""
        await run_until_signalled(
            self._server, start=self._start, stopping=self._stopping, drain=self._drain, announce=self._ready
        )

    async def _start(self) -> None:
        self._serve_metrics()
        work = (self._crowd.follow(self._source), self._pacer.run(), self._sweep())
        self._tasks = [asyncio.create_task(one) for one in work]
        if not await self._crowd.wait_for_agents(DISCOVERY_SECONDS):
            _log.warning("the agents are not known yet", seconds=DISCOVERY_SECONDS)

    async def _stopping(self) -> None:
        self._consumers.close()  # or the drain would wait for streams that never end

    async def _drain(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._crowd.close()
        if self._metrics is not None:
            await self._metrics.close()

    def _ready(self, port: int) -> None:
        ports = {"port": port}
        if self._metrics is not None:
            ports["metrics_port"] = self._metrics.port
        self._announce(ports)

    def _serve_metrics(self) -> None:
        settings = self._settings
        if settings.metrics_port is None:
            return
        collectors = [ClusterMetrics(self._cluster, self._crowd, self._consumers, self._pacer)]
        self._metrics = MetricsServer(collectors, settings.metrics_host or settings.host, settings.metrics_port)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self._cluster.sweep(self._crowd.listed(), 2 * self._pacer.pause)


def _source(settings: AggregatorSettings) -> AgentSource:
    if settings.agents_service:
        return ServiceAgents(parse_service(settings.agents_service), kubernetes_api())
    return ListedAgents(split_addresses(settings.agents), settings.resolve_seconds)


def _credentials(settings: AggregatorSettings) -> Credentials:
    """
    Raises:
        InvalidArgumentError: a certificate cannot be used.
    """
    tls = None
    if settings.agent_tls:
        files = (settings.agent_ca, settings.agent_certificate, settings.agent_key)
        tls = TLS(*files, server_name=settings.agent_server_name)
        tls.credentials()  # what is wrong is said now, not by every stream
    file = settings.agent_token_file
    return Credentials(tls, Token(file=file, allow_plaintext=settings.client_allow_plaintext) if file else None)


async def _run(settings: AggregatorSettings) -> None:
    await Aggregator(settings, announce_file(os.environ)).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after a signal, 1 when it could not start, 2 for wrong settings."""
    return run_service(
        "telemetry-aggregator",
        "Merges the telemetry of a cluster's nodes.",
        AggregatorSettings,
        _run,
        arguments=arguments,
        run=uvloop.run,
    )

"""The `enginehouse-telemetry` command: reads the settings and serves until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from enginehouse.rpc.announce import announce_file
from enginehouse.rpc.entry import run_service
from enginehouse.rpc.metrics_server import MetricsServer
from enginehouse.rpc.server import RpcServer, Service, run_until_signalled
from enginehouse.v1 import telemetry_pb2_grpc as pb_grpc
from enginehouse_telemetry.attribution import Attribution
from enginehouse_telemetry.history import History
from enginehouse_telemetry.host import HostCollector
from enginehouse_telemetry.hub import Hub
from enginehouse_telemetry.metrics import NodeMetrics
from enginehouse_telemetry.node import NodeCollector
from enginehouse_telemetry.nvml_collector import NvmlCollector
from enginehouse_telemetry.pod_resources import PodResources
from enginehouse_telemetry.readings import NodeReading
from enginehouse_telemetry.sampler import Sampler
from enginehouse_telemetry.service import TelemetryService
from enginehouse_telemetry.settings import TelemetrySettings
from enginehouse_telemetry.streams import Streams

SERVICE = "enginehouse.v1.Telemetry"

# Bringing up a driver without persistence mode takes seconds; then we serve without GPUs until it answers.
FIRST_SAMPLE_SECONDS = 10.0

_log = structlog.get_logger("telemetry")


class Agent:
    """The parts of the service, wired together."""

    def __init__(self, settings: TelemetrySettings, announce: Callable[[Mapping[str, int]], None]) -> None:
        self._settings, self._announce = settings, announce
        self._gpus = NvmlCollector(detail_period=settings.detail_period_seconds)
        node = NodeCollector(self._gpus, HostCollector(detail_period=settings.detail_period_seconds))
        self._sampler = Sampler(node, self._deliver, settings.sample_period_seconds)
        streams = Streams(settings.sample_period_seconds, self._sampler.set_period, settings.stream_queue)
        history = History(settings.history_seconds, settings.history_max_bytes)
        self._kubelet = PodResources(str(settings.pod_resources_socket)) if settings.pod_resources_socket else None
        attribution = Attribution(self._kubelet)
        node_name = f"projects/{settings.project}/nodes/{settings.node_name}"
        self._hub = Hub(node_name, history, streams, attribution=attribution)
        service = TelemetryService(self._hub, self._gpus, project=settings.project, node=settings.node_name)
        self._server = RpcServer(
            settings, [Service(SERVICE, lambda server: pb_grpc.add_TelemetryServicer_to_server(service, server))]
        )
        self._loop = asyncio.get_running_loop()
        self._metrics: MetricsServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Serve until signalled."""
        await run_until_signalled(
            self._server, start=self._start, stopping=self._stopping, drain=self._drain, announce=self._ready
        )

    async def _start(self) -> None:
        self._tasks.append(asyncio.create_task(self._hub.attribution.run()))
        self._sampler.start()
        self._serve_metrics()
        if not await self._hub.wait_for_first(FIRST_SAMPLE_SECONDS):
            _log.warning("no sample yet", seconds=FIRST_SAMPLE_SECONDS)
        self._tasks.append(asyncio.create_task(self._watch()))

    async def _stopping(self) -> None:
        self._hub.streams.close()  # or the drain would wait for streams that never end

    async def _drain(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self._kubelet is not None:
            await self._kubelet.close()
        if self._metrics is not None:
            await self._metrics.close()
        if not await asyncio.to_thread(self._sampler.close):
            _log.warning("the driver does not answer; leaving without it")

    def _ready(self, port: int) -> None:
        ports = {"port": port}
        if self._metrics is not None:
            ports["metrics_port"] = self._metrics.port
        self._announce(ports)

    def _deliver(self, reading: NodeReading) -> None:
        with suppress(RuntimeError):  # the loop has closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._hub.publish, reading)

    def _serve_metrics(self) -> None:
        settings = self._settings
        if settings.metrics_port is None:
            return
        collectors = [NodeMetrics(self._hub, self._gpus, self._sampler, settings.node_name)]
        self._metrics = MetricsServer(collectors, settings.metrics_host or settings.host, settings.metrics_port)

    async def _watch(self) -> None:
        """Tell health when the driver stops answering, and the log when GPUs change."""
        known: tuple[str, ...] = ()
        well = True
        while True:
            state = _describe(self._gpus)
            if state != known:
                known = state
                _log.info("gpus", gpus=list(state))
            if well is (self._hub.stalled_seconds > 0):
                well = not well
                await self._server.set_ready(well)
                _log.warning("health", well=well, stalled_seconds=self._hub.stalled_seconds)
            await asyncio.sleep(1.0)


def _describe(gpus: NvmlCollector) -> tuple[str, ...]:
    """The GPUs for the log: what changes here is worth a line."""
    lines = (
        f"{status.identity.index} {status.identity.product} {status.identity.uuid}"
        + (f" lost: {status.message}" if status.lost else "")
        for status in gpus.statuses
    )
    return tuple(lines) or (gpus.message,)


async def _run(settings: TelemetrySettings) -> None:
    await Agent(settings, announce_file(os.environ)).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after a signal, 1 when it could not start, 2 for wrong settings."""
    return run_service(
        "telemetry", "Measures the GPUs and the host of this node.", TelemetrySettings, _run, arguments=arguments
    )

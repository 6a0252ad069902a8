"""The inference service put together from its parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio
import structlog
from prometheus_client import ProcessCollector
from prometheus_client.registry import Collector

from enginehouse.rpc.authorization import Authorizer
from enginehouse.rpc.metrics_server import MetricsServer
from enginehouse.rpc.server import RpcServer
from enginehouse.workers.environments import WorkerEnvironments
from enginehouse_inference.desired.choice import EngineChoice
from enginehouse_inference.desired.fetch import EngineCache
from enginehouse_inference.desired.models import DesiredModels
from enginehouse_inference.desired.pace import Pace
from enginehouse_inference.desired.state import StateFile
from enginehouse_inference.desired.watch import Watcher
from enginehouse_inference.devices.devices import Devices
from enginehouse_inference.devices.facts import DeviceFacts
from enginehouse_inference.fronts.metrics import FrontMetrics
from enginehouse_inference.fronts.servers import FrontServers
from enginehouse_inference.metrics import InferenceMetrics
from enginehouse_inference.models.catalog import Catalog
from enginehouse_inference.models.manager import ModelManager
from enginehouse_inference.models.plan import QueueDefaults
from enginehouse_inference.protocol.regions import Regions
from enginehouse_inference.refusals import Refusals
from enginehouse_inference.service.inference import InferenceMethods
from enginehouse_inference.service.local import LocalHost
from enginehouse_inference.service.management import ManagementMethods
from enginehouse_inference.service.register import front_server
from enginehouse_inference.service.server_settings import LogSettings, TraceSettings
from enginehouse_inference.settings import InferenceSettings
from enginehouse_inference.tracing.start import start_tracing

_log = structlog.get_logger("app")

# Large blobs come in chunks; manifests are small.
_CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 64 << 20), ("grpc.keepalive_time_ms", 20_000))


class InferenceApp:
    """One inference process. Make it inside a running event loop.

    `start()` returns when the first attempt at everything wanted has ended; `stop()` first ends streams.
    """

    def __init__(
        self, settings: InferenceSettings, environments: WorkerEnvironments, authorizer: Authorizer | None = None
    ) -> None:
        self._settings = settings
        cache_dir = settings.cache_dir.expanduser()
        channel = self._channel_maker()
        self.catalog = Catalog(self._readiness_changed)
        self.devices = Devices(environments, settings.device, settings.supervisor, settings.worker_per_model)
        pace = Pace(settings.fetch_megabytes_per_second * 1e6)
        engines = EngineChoice(
            EngineCache(cache_dir, channel, settings.optimizer, pace),
            channel,
            DeviceFacts(environments, settings.device).here,
            settings.missing_engine,
            target=settings.optimizer,
            gpu_product=settings.gpu_product,
        )
        self._manager = ModelManager(
            self.catalog,
            self.devices,
            engines,
            defaults=QueueDefaults(settings.max_queue_size),
            drain_seconds=settings.drain_seconds,
            device_batches=settings.device_batches,
            concurrent_loads=settings.concurrent_loads,
        )
        self.desired = DesiredModels(self._manager, self.catalog, engines, settings.allowed_load_directories)
        self._watcher = (
            Watcher(channel, settings.project, StateFile(cache_dir, settings.project), self.desired.apply)
            if channel is not None
            else None
        )
        regions = Regions(on_unused=self.devices.close_region)
        refusals = Refusals()
        self._tracing = start_tracing(settings.tracing, settings.trace_rate)
        self._metrics: list[Collector] = [InferenceMetrics(self.catalog, self.devices, refusals)]
        self._metrics_server: MetricsServer | None = None
        management = ManagementMethods(
            self.catalog,
            self.desired,
            regions,
            self.devices,
            TraceSettings(self._tracing, settings.trace_rate),
            LogSettings(settings.log_level, settings.log_format),
            lambda: self._ready,
        )
        self._ready = False
        self._health: dict[str, bool] = {}
        self._announcing: set[asyncio.Task[None]] = set()
        host = LocalHost(self.catalog, regions, refusals, self._tracing, management)
        self._inference = InferenceMethods(host, settings.stream_window)
        self.server: RpcServer | FrontServers
        if settings.front_count == 1 or authorizer is not None:  # which other processes would not have
            self.server = front_server(settings, self._inference, host, authorizer)
        else:
            self.server = FrontServers(settings, settings.front_count, host)
            self._metrics.append(FrontMetrics(self.server))

    async def start(self) -> None:
        """Bring up what is wanted."""
        if (address := self._settings.metrics_address) is not None:
            self._metrics_server = MetricsServer([*self._metrics, ProcessCollector(registry=None)], *address)
        if self._watcher is not None:
            self._watcher.start()
            try:
                await asyncio.wait_for(self._watcher.heard.wait(), self._settings.startup_wait_seconds)
            except asyncio.TimeoutError:
                _log.warning("ready without the optimizer", optimizer=self._settings.optimizer)
            await self.desired.settled()
        self._ready = True

    def ports(self, port: int) -> dict[str, int]:
        """What the process announces: `port`, that of gRPC, and `metrics_port`, where there is one."""
        metrics = self._metrics_server
        return {"port": port} if metrics is None else {"port": port, "metrics_port": metrics.port}

    async def stopping(self) -> None:
        """The signal came: be not ready, let streams end."""
        self._ready = False
        self._inference.stop_streams()

    async def drain(self) -> None:
        """After the last call: stop the workers."""
        self._ready = False
        if self._watcher is not None:
            await self._watcher.close()
        await self.desired.close()
        # Together: the manager takes back the loads that are under way, which only a worker that stops cuts short.
        await asyncio.gather(self._manager.close(), self.devices.close())
        if self._metrics_server is not None:
            await self._metrics_server.close()
        await self._tracing.close()

    def _channel_maker(self) -> Callable[[], grpc.aio.Channel] | None:
        target = self._settings.optimizer
        if not target:
            return None
        credentials = self._settings.client_credentials
        credentials.check(target)
        return lambda: credentials.open(target, _CHANNEL_OPTIONS)

    def _readiness_changed(self, name: str) -> None:
        """Tell health checkers that ask for a model by its name."""
        ready = self.catalog.is_ready(name)
        if self._health.get(name) == ready:
            return
        self._health[name] = ready
        task = asyncio.get_running_loop().create_task(self.server.set_ready(ready, name))
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

"""Puts the service together: storage, pipeline, API."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog
from google.longrunning import operations_pb2_grpc

from enginehouse.errors import FailedPreconditionError
from enginehouse.rpc.server import RpcServer, Service
from enginehouse.v1 import (
    blobs_pb2_grpc,
    engines_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    optimizer_pb2_grpc,
    serving_pb2_grpc,
    store_pb2_grpc,
)
from enginehouse.workers.environments import WorkerEnvironments
from enginehouse.workers.stage import StageLimits
from enginehouse_optimizer.api.blobs import BlobsService
from enginehouse_optimizer.api.engines import EnginesService
from enginehouse_optimizer.api.models import DATASETS, MODELS, ModelsService
from enginehouse_optimizer.api.operations import OperationsService
from enginehouse_optimizer.api.optimizer import OptimizerService
from enginehouse_optimizer.api.serving import ServingConfigsService
from enginehouse_optimizer.lock import DataDirLock
from enginehouse_optimizer.notifier import Notifier
from enginehouse_optimizer.pipeline.flights import StageRunner
from enginehouse_optimizer.pipeline.manager import JobManager
from enginehouse_optimizer.pipeline.places import LocalPlace
from enginehouse_optimizer.pipeline.slots import StageQueue, StageSlots
from enginehouse_optimizer.pipeline.timing import TimingCaches
from enginehouse_optimizer.pipeline.versions import EnvironmentVersions
from enginehouse_optimizer.settings import OptimizerSettings
from enginehouse_optimizer.storage.aliases import AliasStore
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.jobs import Jobs
from enginehouse_optimizer.storage.resources import Resources
from enginehouse_optimizer.storage.serving import ServingStore
from enginehouse_optimizer.storage.stage_costs import StageCosts
from enginehouse_optimizer.storage.stage_results import StageResults
from enginehouse_optimizer.storage.timing_caches import TimingCacheIndex
from enginehouse_optimizer.storekeeping import StoreKeeping, project_blobs
from enginehouse_optimizer.threads import in_thread

if TYPE_CHECKING:
    from enginehouse_optimizer.kubernetes.cluster import Cluster

_log = structlog.get_logger("optimizer")


class OptimizerApp:
    """The parts of one optimizer. Make it inside the event loop that will run it.

    Raises:
        FailedPreconditionError: the data folder is in use or unusable.
        InvalidArgumentError: ENGINEHOUSE_WORKERS is malformed.
    """

    def __init__(self, settings: OptimizerSettings, environments: WorkerEnvironments | None = None) -> None:
        self._settings = settings
        data_dir = settings.data_dir.resolve()
        environments = WorkerEnvironments.discover() if environments is None else environments
        self._lock = DataDirLock(data_dir)
        self._lock.acquire()
        # The lock is ours, so what is in here is a dead service's.
        self._work_dir = data_dir / "work"
        shutil.rmtree(self._work_dir, ignore_errors=True)
        self._database = Database(data_dir / "optimizer.sqlite")
        self.notifier = Notifier()
        self._blobs = project_blobs(settings, data_dir)
        jobs = Jobs(self._database, lambda number: self.notifier.notify(("job", number)))
        self._store = StoreKeeping(settings, self._database, jobs, self._blobs)
        engines = self._store.engines
        models = Resources(self._database, MODELS, models_pb2.Model)
        datasets = Resources(self._database, DATASETS, models_pb2.Dataset)
        limits = StageLimits(
            settings.stage_timeout_seconds, settings.stage_memory_bytes or None, settings.stage_grace_seconds
        )
        slots = StageSlots(
            settings.max_running_stages,
            settings.stages_per_environment,
            settings.environment_stages,
            settings.stage_slots,
            settings.stage_memory_budget_bytes,
        )
        timing = TimingCaches(TimingCacheIndex(self._database), self._blobs, settings.timing_cache_max_bytes)
        self._cluster = _cluster(settings, self._blobs, timing)
        runner = StageRunner(
            StageResults(self._database),
            StageCosts(self._database),
            self._blobs,
            self._work_dir,
            (LocalPlace(self._blobs, environments, limits, timing), StageQueue(slots)),
            self._cluster.places if self._cluster else {},
        )
        self.manager = JobManager(
            jobs,
            engines,
            self._blobs,
            runner,
            EnvironmentVersions(environments, settings.worker_images if self._cluster else {}),
            self._cluster.gpus if self._cluster else None,
            max_queued=settings.max_queued_jobs,
            max_running=settings.max_running_jobs,
        )
        self._blobs_api = BlobsService(
            self._blobs,
            max_blob_bytes=settings.max_blob_bytes,
            max_concurrent_uploads=settings.max_concurrent_uploads,
            idle_seconds=settings.upload_idle_seconds,
        )
        self._models_api = ModelsService(models, datasets, self._blobs, jobs)
        serving = ServingStore(self._database)
        aliases = AliasStore(self._database, serving)
        self._engines_api = EnginesService(engines, aliases, self._blobs, self.notifier)
        self._optimizer_api = OptimizerService(
            models,
            datasets,
            jobs,
            self.manager,
            self._blobs,
            self.notifier,
            allow_unsafe=settings.allow_unsafe_models,
        )
        self._operations_api = OperationsService(jobs, self.manager, self.notifier)
        self._serving_api = ServingConfigsService(serving, engines, aliases, self.notifier)
        _log.info("data folder opened", path=str(data_dir), environments=sorted(environments.installed))

    def services(self) -> Sequence[Service]:
        """What to register with a server."""
        return (
            Service("enginehouse.v1.Blobs", lambda s: blobs_pb2_grpc.add_BlobsServicer_to_server(self._blobs_api, s)),
            Service(
                "enginehouse.v1.Models", lambda s: models_pb2_grpc.add_ModelsServicer_to_server(self._models_api, s)
            ),
            Service(
                "enginehouse.v1.Engines", lambda s: engines_pb2_grpc.add_EnginesServicer_to_server(self._engines_api, s)
            ),
            Service(
                "enginehouse.v1.Optimizer",
                lambda s: optimizer_pb2_grpc.add_OptimizerServicer_to_server(self._optimizer_api, s),
            ),
            Service(
                "enginehouse.v1.ServingConfigs",
                lambda s: serving_pb2_grpc.add_ServingConfigsServicer_to_server(self._serving_api, s),
            ),
            Service(
                "enginehouse.v1.Store", lambda s: store_pb2_grpc.add_StoreServicer_to_server(self._store.service, s)
            ),
            Service(
                "google.longrunning.Operations",
                lambda s: operations_pb2_grpc.add_OperationsServicer_to_server(self._operations_api, s),
            ),
        )

    async def start(self) -> None:
        """Clean up after a dead service and take up its jobs."""
        await self._store.start()
        removed = await in_thread(self._blobs.sweep, self._settings.upload_retention_seconds)
        if self._cluster is not None:
            await self._cluster.start()
        resumed = self.manager.resume()
        if self._cluster is not None and not resumed:
            await self._cluster.sweep()
        _log.info("storage is ready", resumed_jobs=resumed, removed_uploads=removed)

    async def close(self) -> None:
        """Stop the stages that run here, close the database, let the data folder go."""
        if self._cluster is not None:
            self._cluster.leave()
        await self.manager.close()
        if self._cluster is not None:
            await self._cluster.close()
        await self._store.close()
        self._database.close()
        shutil.rmtree(self._work_dir, ignore_errors=True)
        self._lock.release()


def _cluster(settings: OptimizerSettings, blobs: ProjectBlobs, timing: TimingCaches) -> Cluster | None:
    if settings.executor != "kubernetes":
        return None
    try:
        from enginehouse_optimizer.kubernetes.cluster import Cluster
    except ImportError as error:
        raise FailedPreconditionError(
            "ENGINEHOUSE_EXECUTOR=kubernetes needs the Kubernetes client: "
            f"pip install 'enginehouse-optimizer[kubernetes]' ({error})"
        ) from error
    return Cluster(settings, blobs, timing)


class OptimizerServer(RpcServer):
    """A server whose endless streams end when it drains, so that draining does not wait for them."""

    def __init__(self, settings: OptimizerSettings, app: OptimizerApp) -> None:
        super().__init__(settings, app.services())
        self._app = app

    async def stop(self) -> None:
        self._app.notifier.close()
        await super().stop()

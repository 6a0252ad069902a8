"""The cluster that stages run in: its parts, made from the settings and connected when the service starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import structlog

from enginehouse.errors import EnginehouseError, FailedPreconditionError
from enginehouse.kubernetes.api import KubernetesApi, namespace_of_this_pod
from enginehouse.workers.environments import BACKEND_ENVIRONMENTS
from enginehouse_optimizer.kubernetes.gpus import ClusterGpus
from enginehouse_optimizer.kubernetes.place import KubernetesPlace
from enginehouse_optimizer.kubernetes.pod_template import load_template
from enginehouse_optimizer.kubernetes.template import ClusterSettings
from enginehouse_optimizer.pipeline.places import StagePlace
from enginehouse_optimizer.pipeline.slots import StageQueue, StageSlots
from enginehouse_optimizer.pipeline.timing import TimingCaches
from enginehouse_optimizer.settings import OptimizerSettings
from enginehouse_optimizer.storage.blobs import ProjectBlobs

_SERVICE = "enginehouse-optimizer"
_CONTAINER = "optimizer"

_log = structlog.get_logger("kubernetes")


class Cluster:
    """Where the stages of `ENGINEHOUSE_WORKER_IMAGES` run.

    Raises:
        FailedPreconditionError: there is no image, or the Job template is not usable.
    """

    def __init__(self, settings: OptimizerSettings, blobs: ProjectBlobs, timing: TimingCaches) -> None:
        if not settings.worker_images:
            raise FailedPreconditionError(
                "ENGINEHOUSE_EXECUTOR is kubernetes, but ENGINEHOUSE_WORKER_IMAGES names no image: expected JSON such "
                'as {"tensorrt": "registry/enginehouse/worker-tensorrt:0.1.0"}'
            )
        if unknown := sorted(set(settings.worker_images) - set(BACKEND_ENVIRONMENTS.values())):
            raise FailedPreconditionError(
                f"ENGINEHOUSE_WORKER_IMAGES names {unknown[0]!r}: expected worker environments, "
                f"{', '.join(sorted(set(BACKEND_ENVIRONMENTS.values())))}"
            )
        namespace = settings.kubernetes_namespace or namespace_of_this_pod()
        self._settings = ClusterSettings(
            namespace=namespace,
            images=settings.worker_images,
            client_image=settings.kubernetes_client_image,
            optimizer=settings.kubernetes_optimizer or f"{_SERVICE}.{namespace}.svc:{settings.port}",
            instance=_instance(settings.data_dir),
            template=load_template(settings.kubernetes_job_template),
            token_audience=settings.auth_audience if settings.auth == "kubernetes" else "",
            plaintext=settings.tls_certificate is None,
            pending_seconds=settings.kubernetes_pending_seconds,
            image_seconds=settings.kubernetes_image_seconds,
        )
        self.gpus = ClusterGpus(settings.worker_images)
        self._place = KubernetesPlace(self._settings, blobs, timing, settings.stage_timeout_seconds)
        jobs = settings.kubernetes_max_jobs
        # Their memory is not this machine's.
        queue = StageQueue(StageSlots(jobs, jobs), available=lambda: None, used=lambda group: 0)
        self.places: Mapping[str, tuple[StagePlace, StageQueue]] = dict.fromkeys(
            settings.worker_images, (self._place, queue)
        )
        self._api: KubernetesApi | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            FailedPreconditionError: no cluster is configured, or its version or our rights do not do.
            EnginehouseError: the API server does not answer, or refuses.
        """
        api = self._api = await KubernetesApi.connect()
        settings = self._settings
        # Asked now, so that a missing right is said when the service starts and not by the first job.
        await api.get(f"/apis/batch/v1/namespaces/{settings.namespace}/jobs", limit="1")
        if not settings.client_image:
            settings = replace(settings, client_image=await _own_image(api))
        self._place.start(api, settings)
        self.gpus.start(api, settings.gpu_resource)
        _log.info("connected", server=api.server, namespace=settings.namespace, images=dict(settings.images))

    async def sweep(self) -> None:
        """Delete the Jobs that a dead service left and nobody wants; what goes wrong is logged."""
        try:
            removed = await self._place.sweep()
        except EnginehouseError as error:
            _log.warning("old jobs were not deleted", error=error.message)
        else:
            if removed:
                _log.info("old jobs deleted", jobs=removed)

    def leave(self) -> None:
        """Before the service stops: Jobs that run go on without it."""
        self._place.leave()

    async def close(self) -> None:
        if self._api is not None:
            await self._api.close()


def _instance(data_dir: Path) -> str:
    """What tells the Jobs of this data folder's optimizer from those of another one in the namespace."""
    file = data_dir / "instance"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        made = uuid4().hex[:12]
        file.write_text(made)
        return made


async def _own_image(api: KubernetesApi) -> str:
    """The image of the container that this process runs in."""
    namespace, name = namespace_of_this_pod(), os.environ.get("HOSTNAME", "")
    try:
        pod = await api.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        containers = pod["spec"]["containers"]
        own = next((c for c in containers if c["name"] == _CONTAINER), containers[0])
        return str(own["image"])
    except (EnginehouseError, LookupError) as error:
        raise FailedPreconditionError(
            f"ENGINEHOUSE_KUBERNETES_CLIENT_IMAGE is not set, and the image of this pod ({namespace}/{name}) is not "
            f"known: set it to an image with the enginehouse package ({error})"
        ) from error

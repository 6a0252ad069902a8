"""Stages as Jobs of a real cluster: `KUBECONFIG=... pytest tests/k8s -m cluster`.

What needs no image of ours runs on any cluster. A whole build needs the images enginehouse/worker-onnxruntime and
enginehouse/optimizer on its nodes (or named in ENGINEHOUSE_TEST_WORKER_IMAGE and ENGINEHOUSE_TEST_CLIENT_IMAGE), and
that pods reach this machine (at ENGINEHOUSE_TEST_HOST, its address towards the API server when absent). A node that
offers nvidia.com/gpu without a GPU does: the backend is ONNX Runtime's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from enginehouse_optimizer.kubernetes.gpus import place_target, products_of
from enginehouse_optimizer.kubernetes.place import KubernetesPlace
from enginehouse_optimizer.kubernetes.pod_template import load_template
from enginehouse_optimizer.kubernetes.template import ClusterSettings, JobOrder, job_name, make_job
from enginehouse_optimizer.pipeline.inputs import Target
from enginehouse_optimizer.pipeline.places import StageRun
from enginehouse_optimizer.pipeline.plan import PlannedStage
from enginehouse_optimizer.pipeline.timing import TimingCaches
from enginehouse_optimizer.storage.blobs import ProjectBlobs
from enginehouse_optimizer.storage.database import Database
from enginehouse_optimizer.storage.timing_caches import TimingCacheIndex

from enginehouse import Client
from enginehouse import Target as Wanted
from enginehouse.artifacts import digest_bytes
from enginehouse.errors import AbortedError, EnginehouseError, FailedPreconditionError
from enginehouse.kubernetes.api import KubernetesApi

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[3]
NOWHERE = "registry.invalid/enginehouse/worker:1"
# y = Relu(x), for rows of four numbers.
TINY_ONNX = "CAg6PQoMCgF4EgF5IgRSZWx1EgFnWhQKAXgSDwoNCAESCQoDEgFuCgIIBGIUCgF5Eg8KDQgBEgkKAxIBbgoCCARCBAoAEBE="


class Watcher:
    def __init__(self) -> None:
        self.waited: list[str] = []

    def waits(self, message: str) -> None:
        self.waited.append(message)

    def runs(self) -> None: ...
    def progresses(self, fraction: float, message: str) -> None: ...
    def grouped(self, group: int) -> None: ...


class World:
    """A place in the cluster's namespace."""

    def __init__(self, folder: Path, api: KubernetesApi, namespace: str) -> None:
        blobs = ProjectBlobs(folder)
        timing = TimingCaches(TimingCacheIndex(Database(folder / "db")), blobs, 1 << 20)
        images = {"onnxruntime": NOWHERE}
        settings = ClusterSettings(
            namespace, images, NOWHERE, "127.0.0.1:1", pending_seconds=5.0, image_seconds=5.0
        )  # fmt: skip
        self.api, self.namespace, self.folder, self.watcher = api, namespace, folder, Watcher()
        self.place = KubernetesPlace(settings, blobs, timing, 60.0)
        self.place.start(api, settings)

    async def run(self, name: str, gpu: str = "") -> None:
        stage = PlannedStage(name, "build", "onnxruntime", {}, {}, digest_bytes(name.encode()), gpu=gpu)
        self.job = job_name("optimizer", "build", "p", stage.key)
        work = self.folder / name
        work.mkdir()
        await self.place.run(StageRun("p", stage, {}, work, work / "log"), self.watcher)

    async def until_gone(self) -> None:
        for kind in ("/apis/batch/v1/namespaces/{}/jobs", "/api/v1/namespaces/{}/pods"):
            for _ in range(120):
                if not (await self.api.get(kind.format(self.namespace)))["items"]:
                    break
                await asyncio.sleep(0.5)
            else:
                raise AssertionError(f"there still are {kind}")


@pytest.fixture
def world(tmp_path: Path, api: KubernetesApi, cluster: Any) -> World:
    return World(tmp_path, api, cluster.namespace)


async def test_the_server_takes_our_jobs_as_they_are(api: KubernetesApi, cluster: Any) -> None:
    for path in (None, ROOT / "k8s/base/build-job-pod.yaml"):
        settings = ClusterSettings(
            cluster.namespace, {"onnxruntime": NOWHERE}, NOWHERE, "optimizer:8010", template=load_template(path),
            token_audience="enginehouse",
        )  # fmt: skip
        for gpu in ("", "NVIDIA-H200"):
            order = JobOrder("dry", "build", digest_bytes(b"k"), "p", "onnxruntime", digest_bytes(b"o"), gpu, 60.0)
            job = make_job(settings, order)
            jobs = f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs"
            made = await api.post(jobs, job, dryRun="All", fieldValidation="Strict")
            assert made["spec"]["template"]["spec"]["initContainers"][1]["name"] == "worker"


async def test_images_that_cannot_be_had_are_named(world: World) -> None:
    with pytest.raises(FailedPreconditionError, match=r"registry\.invalid/enginehouse/worker:1"):
        await world.run("image")
    await world.until_gone()


async def test_pods_that_no_node_takes_say_the_schedulers_words(world: World) -> None:
    with pytest.raises(EnginehouseError, match="nodes are available"):
        await world.run("pending", gpu="no-such-product")
    await world.until_gone()


async def test_a_gpu_type_that_no_node_has(api: KubernetesApi, cluster: Any) -> None:
    listed = await api.get("/api/v1/nodes", labelSelector="nvidia.com/gpu.product")
    products = products_of(listed["items"], "nvidia.com/gpu")
    with pytest.raises(FailedPreconditionError) as caught:
        place_target(Target("onnxruntime", "FP32", gpu_product="no-such-product"), products)
    assert all(product.name in caught.value.message for product in products)


async def test_cancelled_and_deleted_jobs(world: World) -> None:
    running = asyncio.ensure_future(world.run("cancelled", gpu="no-such-product"))
    while not any("nodes are available" in message for message in world.watcher.waited):
        await asyncio.sleep(0.1)
        assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await world.until_gone()
    world.watcher.waited.clear()
    running = asyncio.ensure_future(world.run("deleted", gpu="no-such-product"))
    while not any("nodes are available" in message for message in world.watcher.waited):
        await asyncio.sleep(0.1)
        assert not running.done()
    await world.api.delete(f"/apis/batch/v1/namespaces/{world.namespace}/jobs/{world.job}")
    with pytest.raises(AbortedError, match="was deleted"):
        await running
    await world.until_gone()


def test_a_whole_build(cluster: Any, tmp_path: Path) -> None:
    worker = cluster.image("ENGINEHOUSE_TEST_WORKER_IMAGE", "enginehouse/worker-onnxruntime")
    client_image = cluster.image("ENGINEHOUSE_TEST_CLIENT_IMAGE", "enginehouse/optimizer")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    host = os.environ.get("ENGINEHOUSE_TEST_HOST") or _address_towards_the_server()
    announce = tmp_path / "announce.json"
    variables = {
        **os.environ,
        "ENGINEHOUSE_HOST": "0.0.0.0",
        "ENGINEHOUSE_PORT": str(port),
        "ENGINEHOUSE_DATA_DIR": str(tmp_path / "data"),
        "ENGINEHOUSE_ANNOUNCE_FILE": str(announce),
        "ENGINEHOUSE_EXECUTOR": "kubernetes",
        "ENGINEHOUSE_KUBERNETES_NAMESPACE": cluster.namespace,
        "ENGINEHOUSE_KUBERNETES_CLIENT_IMAGE": client_image,
        "ENGINEHOUSE_KUBERNETES_OPTIMIZER": f"{host}:{port}",
        "ENGINEHOUSE_WORKER_IMAGES": json.dumps({"onnxruntime": worker}),
    }
    log = (tmp_path / "log").open("ab")
    with subprocess.Popen([sys.executable, "-m", "enginehouse_optimizer"], env=variables, stdout=log, stderr=log) as it:
        try:
            while not announce.exists():
                assert it.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
            with Client(optimizer=f"127.0.0.1:{port}") as client:
                file = tmp_path / "relu.onnx"
                file.write_bytes(base64.b64decode(TINY_ONNX))
                model = client.models.upload(file)
                target = Wanted("onnxruntime", "fp32", gpu_product=cluster.gpu_product)
                (engine,) = client.optimize(model, [target]).result(timeout=600)
                assert engine.backend == "onnxruntime"
        finally:
            it.terminate()


def _address_towards_the_server() -> str:
    async def server() -> str:
        async with await KubernetesApi.connect() as api:
            return api.server

    url = urlsplit(asyncio.run(server()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((url.hostname, url.port or 443))
        return str(probe.getsockname()[0])

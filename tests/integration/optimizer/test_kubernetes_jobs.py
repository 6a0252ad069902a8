"""The optimizer with stages as Jobs: pods are processes here, files travel over the real API, workers are stand-ins."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2
from kubernetes_fake import FakeKubernetes
from kubernetes_kubelet import Image, Kubelet
from optimizer_process import FAKE_WORKER, FP32, INT8, ROOT, OptimizerProcess, error_of

from enginehouse.errors import CancelledError, FailedPreconditionError, InternalError
from enginehouse.v1 import optimizer_pb2 as pb

SYNTHETIC = pb.CalibrationSpec(synthetic=pb.SyntheticData(samples=8))
H200, A100 = "NVIDIA-H200", "NVIDIA-A100-SXM4-80GB"


class World:
    def __init__(self, folder: Path, cluster: FakeKubernetes, port: int) -> None:
        self.cluster = cluster
        paths = os.pathsep.join([str(FAKE_WORKER), str(ROOT)])
        images = {
            "client:1": Image(Path(sys.executable), {"PYTHONPATH": str(ROOT)}),
            "worker:1": Image(Path(sys.executable), {"PYTHONPATH": paths}),
        }
        self.kubelet = Kubelet(cluster, images, folder / "pods")
        cluster.add_recorded_node("h200-1")
        cluster.add_recorded_node("a100-1", nvidia_com__gpu_product=A100)
        self.settings = {
            "KUBECONFIG": str(cluster.kubeconfig(folder / "kubeconfig")),
            "ENGINEHOUSE_PORT": str(port),
            "ENGINEHOUSE_EXECUTOR": "kubernetes",
            "ENGINEHOUSE_WORKER_IMAGES": json.dumps({"onnxruntime": "worker:1"}),
            "ENGINEHOUSE_KUBERNETES_NAMESPACE": "enginehouse",
            "ENGINEHOUSE_KUBERNETES_CLIENT_IMAGE": "client:1",
            "ENGINEHOUSE_KUBERNETES_OPTIMIZER": f"127.0.0.1:{port}",
        }

    def jobs(self, stage: str = "") -> list[Any]:
        """The Jobs that were made, of a stage."""
        made = self.cluster.created("jobs")
        return [job for job in made if stage in ("", job["metadata"]["annotations"]["enginehouse/stage"])]

    def building(self) -> list[str]:
        """Pods of builds that have a process."""
        return [name for name in self.kubelet.running() if "-build-" in name]

    def left(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.cluster.store.select("jobs", "enginehouse", lambda _: True)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with FakeKubernetes() as cluster:
        world = World(tmp_path, cluster, port)
        yield world
        world.kubelet.close()


def target(precision: Any = FP32, gpu: str = H200, backend: str = "onnxruntime") -> pb.EngineTarget:
    return pb.EngineTarget(backend=backend, precision=precision, gpu_product=gpu)


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_gpu_types_share_one_calibration(world: World, start: Callable[..., OptimizerProcess]) -> None:
    optimizer = start(**world.settings)
    wrong = error_of(optimizer.optimize, optimizer.model(), targets=[target(gpu="NVIDIA-B200")])
    assert isinstance(wrong, FailedPreconditionError)
    assert f"'NVIDIA-B200': it has {A100} (4 GPUs on 1 node), {H200} (4 GPUs on 1 node)" in wrong.message
    assert world.jobs() == []
    operation = optimizer.optimize(
        optimizer.model(), targets=[target(INT8, H200), target(INT8, A100)], calibration=SYNTHETIC
    )
    first, second = optimizer.result(operation)
    assert first.key != second.key and first.calibration_digest == second.calibration_digest
    assert len(world.jobs("calibrate")) == 1
    wanted = [job["spec"]["template"]["spec"].get("nodeSelector") for job in world.jobs("build")]
    assert sorted(selector["nvidia.com/gpu.product"] for selector in wanted) == [A100, H200]
    assert "nodeSelector" not in world.jobs("calibrate")[0]["spec"]["template"]["spec"]
    assert b"build starts" in optimizer.download(first.build_log_digest)
    until(lambda: world.left() == [])
    stages = {stage.name: stage for stage in optimizer.metadata(operation.name).stages}
    assert stages[f"build onnxruntime int8 {H200}"].seconds == 0.01


@pytest.mark.slow
def test_a_stage_that_fails_and_one_that_is_cancelled(world: World, start: Callable[..., OptimizerProcess]) -> None:
    optimizer = start(**world.settings)
    with pytest.raises(InternalError, match=r"(?s)'worker' of pod .*-build-.*exited with status 3.*build starts"):
        optimizer.result(optimizer.optimize(optimizer.model(build="silent"), targets=[target()]))
    operation = optimizer.optimize(optimizer.model(build="hang"), targets=[target()])
    optimizer.await_stage(operation.name, f"build onnxruntime fp32 {H200}")
    until(lambda: len(world.building()) == 1)
    optimizer.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=operation.name))
    with pytest.raises(CancelledError):
        optimizer.result(operation)
    until(lambda: world.left() == [] and world.building() == [])


@pytest.mark.slow
def test_jobs_outlive_the_service(world: World, start: Callable[..., OptimizerProcess], tmp_path: Path) -> None:
    optimizer = start(**world.settings)
    gate = tmp_path / "gate"
    operation = optimizer.optimize(optimizer.model(build="gate", gate=str(gate)), targets=[target()])
    optimizer.await_stage(operation.name, f"build onnxruntime fp32 {H200}")
    until(lambda: len(world.building()) == 1)
    (pod,) = world.building()
    assert optimizer.stop() == 0
    assert world.building() == [pod]
    optimizer.start()
    gate.touch()
    assert optimizer.result(operation)[0].backend == "onnxruntime"
    assert len({job["metadata"]["name"] for job in world.jobs("build")}) == 1
    pods = [p for p in world.cluster.logs if "-build-" in p[1]]
    assert {name for _, name, _ in pods} == {pod}, "one pod built it"

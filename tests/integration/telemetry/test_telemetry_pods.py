"""The agent beside a kubelet: a real gRPC server on a Unix socket, and a GPU that is split by MIG."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from telemetry_world import Control, running

# v1.ListPodResourcesResponse by hand: name 1, namespace 2, containers 3 {name 1, devices 2 {resource 1, ids 2}}


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def pod(name: str, resource: str, *devices: str) -> bytes:
    held = field(1, resource.encode()) + b"".join(field(2, device.encode()) for device in devices)
    container = field(1, b"main") + field(2, held)
    return field(1, field(1, name.encode()) + field(2, b"team") + field(3, container))


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    answer = pod("trainer", "nvidia.com/gpu", "GPU-bbbb") + pod("small", "nvidia.com/mig-1g.18gb", "MIG-1")
    path = tmp_path / "kubelet.sock"
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": handler})])
    server.add_insecure_port(f"unix:{path}")
    server.start()
    yield path
    server.stop(None)


def test_pods_hold_gpus_and_mig_instances(tmp_path: Path, libraries: Path, control: Control, socket: Path) -> None:
    control.gpu(
        0,
        {"mig": 1, "mig0.uuid": "MIG-0", "mig0.gi": 7, "mig0.ci": 0, "mig2.uuid": "MIG-1", "mig2.gi": 9, "mig2.ci": 0},
    )
    control.gpu(0, {"mig2.name": "NVIDIA H200 MIG 1g.18gb", "mig2.memory.total": 1 << 34, "mig2.memory.used": 5})
    control.write()
    with running(tmp_path, libraries, control.path, POD_RESOURCES_SOCKET=str(socket)) as agent:
        sample = agent.when(lambda sample: sample.gpus and sample.gpus[1].allocations, "an allocation")
        split, whole = sample.gpus
        first, second = split.mig_instances
        assert (first.uuid, first.gpu_instance_id, first.HasField("memory_used_bytes")) == ("MIG-0", 7, False)
        assert (second.product, second.memory_used_bytes) == ("NVIDIA H200 MIG 1g.18gb", 5)
        (small,) = split.allocations
        assert (small.namespace, small.pod, small.mig_uuid, small.shared) == ("team", "small", "MIG-1", True)
        (trainer,) = whole.allocations
        assert (trainer.pod, trainer.container, trainer.shared) == ("trainer", "main", False)
        metrics = agent.metrics()
        assert 'pod="trainer"' in metrics and "enginehouse_telemetry_pod_resources_up 1.0" in metrics


def test_without_a_kubelet_the_agent_works_and_says_why(tmp_path: Path, libraries: Path, control: Control) -> None:
    with running(tmp_path, libraries, control.path, POD_RESOURCES_SOCKET=str(tmp_path / "none.sock")) as agent:
        sample = agent.when(lambda sample: "UNAVAILABLE" in sample.allocation_message, "a reason")
        assert len(sample.gpus) == 2
        assert "enginehouse_telemetry_pod_resources_up 0.0" in agent.metrics()

"""Which pod holds which GPU: the kubelet's recorded answer, MIG, replicas, a kubelet that restarts."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from enginehouse_telemetry.allocations import Device, allocate, parse_device
from enginehouse_telemetry.attribution import KEEP_SECONDS, Attribution
from enginehouse_telemetry.history import History
from enginehouse_telemetry.hub import Hub
from enginehouse_telemetry.metrics import NodeMetrics
from enginehouse_telemetry.pod_resources import Holding, PodResources, holdings
from enginehouse_telemetry.readings import GpuReading, MigReading
from enginehouse_telemetry.sampler import Sampler
from enginehouse_telemetry.streams import Streams
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))

from kubelet import Kubelet, recorded_list

GPUS = tuple(GpuReading(uuid=f"GPU-fake-{index}", index=index) for index in range(4))
MIG = GpuReading(
    uuid="GPU-m",
    index=4,
    mig_instances=(
        MigReading("MIG-one", gpu_instance_id=7, compute_instance_id=0),
        MigReading("MIG-two", gpu_instance_id=8, compute_instance_id=0),
    ),
)


def held(device: str, pod: str = "p", resource: str = "nvidia.com/gpu") -> Holding:
    return Holding("ns", pod, "main", resource, device)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_recorded_answer() -> None:
    found = allocate(holdings(recorded_list()), GPUS)
    by_gpu = {index: [one.pod for one in ones] for index, ones in found.by_gpu.items()}
    assert by_gpu == {0: ["gpu-b-ljxbm"], 1: ["gpu-a-tfvxq"], 2: ["gpu-b-ljxbm"]}
    (one,) = found.by_gpu[1]
    assert (one.namespace, one.container, one.resource, one.device, one.shared) == (
        "enginehouse",
        "main",
        "nvidia.com/gpu",
        "GPU-fake-1",
        False,
    )
    assert not found.unmatched and not found.message


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("GPU-1a::3", Device(gpu_uuid="GPU-1a", replica=3)),
        ("MIG-1a", Device(mig_uuid="MIG-1a")),
        ("MIG-1a::0", Device(mig_uuid="MIG-1a", replica=0)),
        ("MIG-GPU-1a/7/0", Device(gpu_uuid="GPU-1a", gpu_instance=7)),
        ("nvidia2", Device(gpu_index=2)),
        ("nvidia2/gi3", Device(gpu_index=2, gpu_instance=3)),
        ("nvidia2/vgpu1", Device(gpu_index=2, replica=1)),
        ("nvidia2/gi3/vgpu1", Device(gpu_index=2, gpu_instance=3, replica=1)),
    ],
)
def test_device_ids(name: str, device: Device) -> None:
    assert parse_device(name) == device


def test_replicas_are_shared_even_by_one_pod() -> None:
    found = allocate([held("GPU-fake-0::0", "a"), held("GPU-fake-0::1", "b"), held("GPU-fake-1::0", "c")], GPUS)
    assert [(one.pod, one.replica, one.shared) for one in found.by_gpu[0]] == [("a", 0, True), ("b", 1, True)]
    assert [one.shared for one in found.by_gpu[1]] == [True]


def test_mig_instances_belong_to_their_gpu() -> None:
    devices = ["MIG-two", "MIG-GPU-m/7/0", "nvidia4/gi8", "MIG-gone"]
    found = allocate([held(device, resource="nvidia.com/mig-1g.10gb") for device in devices], (*GPUS, MIG))
    assert [(one.mig_uuid, one.shared) for one in found.by_gpu[4]] == [
        ("MIG-two", True),
        ("MIG-one", True),
        ("MIG-two", True),
    ]
    assert [one.mig_uuid for one in found.unmatched] == ["MIG-gone"]


def test_two_containers_of_one_gpu_share_it() -> None:
    found = allocate([held("GPU-fake-0", "a"), held("GPU-fake-0", "b")], GPUS)
    assert [one.shared for one in found.by_gpu[0]] == [True, True]


def test_other_vendors_and_unknown_gpus() -> None:
    found = allocate([held("GPU-fake-0", resource="example.com/nic"), held("GPU-other")], GPUS)
    assert not found.by_gpu and [one.device for one in found.unmatched] == ["GPU-other"]


async def test_a_kubelet_restarts(tmp_path: Path) -> None:
    clock = Clock()
    socket = tmp_path / "kubelet.sock"
    source = PodResources(str(socket))
    attribution = Attribution(source, clock=clock)
    assert "not been asked" in attribution.allocations(GPUS).message
    await attribution.ask(source)
    assert "UNAVAILABLE" in attribution.allocations(GPUS).message and not attribution.works

    first = Kubelet(socket, recorded_list())
    await first.start()
    await _until_works(attribution, source)
    assert sorted(attribution.allocations(GPUS).by_gpu) == [0, 1, 2]
    assert first.calls == 1 and attribution.allocations(GPUS).by_gpu  # from memory
    assert first.calls == 1

    await first.stop()
    await attribution.ask(source)
    kept = attribution.allocations(GPUS)
    assert sorted(kept.by_gpu) == [0, 1, 2] and "what it said last stands" in kept.message
    clock.now = KEEP_SECONDS + 1
    assert not attribution.allocations(GPUS).by_gpu

    second = Kubelet(socket, b"")  # the socket is made anew, and no pod holds anything
    await second.start()
    await _until_works(attribution, source)
    assert not attribution.allocations(GPUS).by_gpu and not attribution.allocations(GPUS).message
    await second.stop()
    await source.close()


async def _until_works(attribution: Attribution, source: PodResources) -> None:
    while not attribution.works:  # pytest's timeout ends it
        await attribution.ask(source)
        await asyncio.sleep(0.05)


async def test_an_answer_of_another_kind_says_so(tmp_path: Path) -> None:
    kubelet = Kubelet(tmp_path / "kubelet.sock", b"\xff\xff\xff")
    await kubelet.start()
    source = PodResources(str(kubelet.socket))
    attribution = Attribution(source)
    await attribution.ask(source)
    assert "not a ListPodResourcesResponse" in attribution.allocations(GPUS).message
    await source.close()
    await kubelet.stop()


class Known:
    """A kubelet that has answered."""

    def __init__(self, *found: Holding) -> None:
        self._found = found

    async def list(self, timeout: float) -> tuple[Holding, ...]:
        return self._found


async def test_metrics_and_samples_say_who(gpus, make_reading) -> None:  # type: ignore[no-untyped-def]
    source = Known(held("GPU-0", "alone"), held("GPU-1::0", "a"), held("GPU-1::1", "b"), held("GPU-9", "elsewhere"))
    attribution = Attribution(source)
    await attribution.ask(source)
    hub = Hub("n", History(60, 1 << 20), Streams(1.0, lambda _: None), Clock(), attribution=attribution)
    hub.publish(make_reading())
    assert hub.latest is not None
    assert [(one.pod, one.shared) for gpu in hub.latest.gpus for one in gpu.allocations] == [
        ("alone", False),
        ("a", True),
        ("b", True),
    ]
    assert [one.pod for one in hub.latest.unmatched_allocations] == ["elsewhere"]

    registry = CollectorRegistry()
    registry.register(NodeMetrics(hub, gpus, Sampler(None, lambda _: None, 1.0), "n"))  # type: ignore[arg-type]
    text = generate_latest(registry).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    (used,) = families["DCGM_FI_DEV_FB_USED"].samples
    assert (used.labels["namespace"], used.labels["pod"], used.labels["container"]) == ("ns", "alone", "main")
    lost = families["enginehouse_gpu_lost"].samples
    assert [sample.labels["pod"] for sample in lost] == ["alone", ""]
    held_by = families["enginehouse_gpu_allocation"].samples
    assert [(sample.labels["UUID"], sample.labels["pod"], sample.labels["shared"]) for sample in held_by] == [
        ("GPU-0", "alone", "false"),
        ("GPU-1", "a", "true"),
        ("GPU-1", "b", "true"),
    ]
    assert families["enginehouse_telemetry_pod_resources_up"].samples[0].value == 1

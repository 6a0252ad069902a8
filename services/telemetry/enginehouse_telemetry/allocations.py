"""Which containers hold which GPU: the device plugins' words matched with the GPUs that NVML lists. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from enginehouse_telemetry.pod_resources import Holding
from enginehouse_telemetry.readings import GpuReading

VENDOR = "nvidia.com/"

# "GPU-...::3": a replica under time-slicing or MPS (NVIDIA's device plugin).
_REPLICA = "::"
# "MIG-GPU-<uuid>/<gpu instance>/<compute instance>": drivers before 470.
_OLD_MIG = re.compile(r"^MIG-(?P<uuid>GPU-[^/]+)/(?P<instance>\d+)/\d+$")
# "nvidia0", "nvidia0/gi3", "nvidia0/vgpu1", "nvidia0/gi3/vgpu1": GKE's device plugin.
_GKE = re.compile(r"^nvidia(?P<index>\d+)(?:/gi(?P<instance>\d+))?(?:/vgpu(?P<replica>\d+))?$")


@dataclass(frozen=True)
class Device:
    """What a device plugin's id names: a GPU by UUID or index, a MIG instance, a replica of either."""

    gpu_uuid: str = ""
    gpu_index: int | None = None
    mig_uuid: str = ""
    gpu_instance: int | None = None
    replica: int | None = None


@dataclass(frozen=True)
class Allocation:
    """A container holds a GPU or a part of it. The fields are those of `GpuAllocation` in `telemetry.proto`."""

    namespace: str
    pod: str
    container: str
    resource: str
    device: str
    mig_uuid: str = ""
    replica: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class Allocations:
    """Allocations by the GPU's index, those of no GPU of this node, and why they are missing or old."""

    by_gpu: Mapping[int, tuple[Allocation, ...]] = field(default_factory=dict)
    unmatched: tuple[Allocation, ...] = ()
    message: str = ""


NO_ALLOCATIONS = Allocations()


def parse_device(name: str) -> Device:
    """What a device plugin's id names. One of no known form names nothing."""
    if found := _GKE.match(name):
        parts = {key: int(value) for key, value in found.groupdict().items() if value is not None}
        return Device(gpu_index=parts["index"], gpu_instance=parts.get("instance"), replica=parts.get("replica"))
    unit, mark, number = name.partition(_REPLICA)
    replica = int(number) if mark and number.isdigit() else None
    if found := _OLD_MIG.match(unit):
        return Device(gpu_uuid=found["uuid"], gpu_instance=int(found["instance"]), replica=replica)
    if unit.startswith("MIG-"):
        return Device(mig_uuid=unit, replica=replica)
    return Device(gpu_uuid=unit, replica=replica)


def allocate(held: Sequence[Holding], gpus: Iterable[GpuReading], message: str = "") -> Allocations:
    """Match holdings with GPUs. Only NVIDIA's resources count.

    An allocation is shared when it is a replica, when it is a MIG instance (power, temperature and utilization are the
    whole GPU's), or when another container holds the same GPU.
    """
    known = tuple(gpus)
    matched: dict[int, list[Allocation]] = {}
    unmatched: list[Allocation] = []
    for holding in held:
        if not holding.resource.startswith(VENDOR):
            continue
        device = parse_device(holding.device)
        gpu, mig_uuid = _find(device, known)
        allocation = Allocation(
            holding.namespace,
            holding.pod,
            holding.container,
            holding.resource,
            holding.device,
            mig_uuid=mig_uuid,
            replica=device.replica,
            shared=device.replica is not None or bool(mig_uuid) or device.gpu_instance is not None,
        )
        if gpu is None:
            unmatched.append(allocation)
        else:
            matched.setdefault(gpu.index, []).append(allocation)
    return Allocations({index: _with_others(found) for index, found in matched.items()}, tuple(unmatched), message)


def _find(device: Device, gpus: tuple[GpuReading, ...]) -> tuple[GpuReading | None, str]:
    """The GPU that a device is, or is a part of, and the UUID of the MIG instance."""
    for gpu in gpus:
        instances = gpu.mig_instances
        if device.mig_uuid:
            if any(instance.uuid == device.mig_uuid for instance in instances):
                return gpu, device.mig_uuid
        elif (device.gpu_uuid and gpu.uuid == device.gpu_uuid) or gpu.index == device.gpu_index:
            uuids = [one.uuid for one in instances if one.gpu_instance_id == device.gpu_instance]
            return gpu, uuids[0] if device.gpu_instance is not None and uuids else ""
    return None, device.mig_uuid


def _with_others(found: list[Allocation]) -> tuple[Allocation, ...]:
    holders = Counter((one.namespace, one.pod, one.container) for one in found)
    return tuple(replace(one, shared=True) for one in found) if len(holders) > 1 else tuple(found)

"""Which engines run on this process's device: data alone. The worker that loads an engine has the last word."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from enginehouse.v1 import engines_pb2
from enginehouse.workers.environments import BACKEND_ENVIRONMENTS

# A plan for these runs where the driver and CUDA core are the same, whatever product.
_ANY = "any"
_HARDWARE_COMPATIBLE_FROM = 8.0


@dataclass(frozen=True)
class Here:
    """What engines find here.

    Attributes:
        environments: installed worker environments.
        product: of the GPU, such as "NVIDIA H200"; empty without one.
        compute_capability: such as "9.0".
        versions: of the GPU backends installed here, as their engines name them; of those that were asked.
        gpu: whether it serves on a GPU, which has no product here when NVML does not say.
    """

    environments: frozenset[str]
    product: str = ""
    compute_capability: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    gpu: bool = False

    def has(self, backend: str) -> bool:
        """Whether a backend's worker environment is installed."""
        return BACKEND_ENVIRONMENTS.get(backend, backend) in self.environments

    def __str__(self) -> str:
        if not self.product:
            return f"this process serves {'on a GPU that NVML does not name' if self.gpu else 'without a GPU'}"
        versions = "".join(f", {name} {version}" for name, version in sorted(self.versions.items()))
        return f"this process has a {self.product} ({self.compute_capability or '?'}{versions})"


def misfit(engine: engines_pb2.Engine, options: Mapping[str, str], here: Here) -> str:
    """Why an engine does not run here; empty when it does, or when it does not say what it is for.

    Args:
        options: that it was built with.
    """
    if not engine.backend:
        return ""
    if not here.has(engine.backend):
        return f"its backend, {engine.backend}, is not installed here"
    if engine.device.kind != "gpu":
        return ""
    built_for = _built_for(engine.device)
    if not here.product:
        return "" if here.gpu else f"it was built for {built_for}"
    if not _same_device(engine, here) and not (_is_on(options, "hardware_compatible") and _is_recent(here)):
        return f"it was built for {built_for}"
    return _other_version(engine, options, here.versions.get(engine.backend, ""))


def _built_for(device: engines_pb2.Device) -> str:
    if device.product == _ANY:
        return f"any GPU of compute capability {device.compute_capability}"
    return f"{device.product} ({device.compute_capability})"


def candidates(
    engine: engines_pb2.Engine, others: Iterable[engines_pb2.Engine], *, same_kind: bool
) -> list[engines_pb2.Engine]:
    """Engines that clients cannot tell from another one, best first.

    Args:
        same_kind: only those of its backend, precision and profile; else any, those of its precision first.
    """
    alike = [other for other in others if other.name != engine.name and _signature(other) == _signature(engine)]
    if same_kind:
        alike = [other for other in alike if _kind(other) == _kind(engine)]
    newest_first = sorted(alike, key=lambda other: other.create_time.ToNanoseconds(), reverse=True)
    return sorted(newest_first, key=lambda other: _distance(engine, other))


def label_of(product: str) -> str:
    """A product as GPU feature discovery labels nodes with it: "NVIDIA H200" is "NVIDIA-H200"."""
    return re.sub(r"\s+", "-", product.strip())


def _distance(engine: engines_pb2.Engine, other: engines_pb2.Engine) -> tuple[bool, bool, bool]:
    fp32 = engines_pb2.PRECISION_FP32
    return other.precision != engine.precision, other.device.kind != "gpu", other.precision != fp32


def _kind(engine: engines_pb2.Engine) -> tuple[object, ...]:
    profile = engine.profile
    return engine.backend, engine.precision, (profile.min, profile.opt, profile.max)


def _signature(engine: engines_pb2.Engine) -> str:
    tensors = [[t.name, t.dtype, list(t.shape)] for t in (*engine.inputs, *engine.outputs)]
    return json.dumps([engine.model, engine.model_digest, engine.batched, len(engine.inputs), tensors])


def _same_device(engine: engines_pb2.Engine, here: Here) -> bool:
    theirs = engine.device
    if theirs.compute_capability and here.compute_capability and theirs.compute_capability != here.compute_capability:
        return False
    return theirs.product == _ANY or _whole(theirs.product) == _whole(here.product)


def _whole(product: str) -> str:
    """The GPU that a MIG instance is of. NVML does not tell instances apart here, so the worker must."""
    return product.partition(" MIG ")[0].casefold()


def _is_recent(here: Here) -> bool:
    try:
        return float(here.compute_capability) >= _HARDWARE_COMPATIBLE_FROM
    except ValueError:
        return False


def _other_version(engine: engines_pb2.Engine, options: Mapping[str, str], version: str) -> str:
    if not version or not engine.backend_version or engine.backend_version == version:
        return ""
    same_major = engine.backend_version.partition(".")[0] == version.partition(".")[0]
    if _is_on(options, "version_compatible") and same_major:
        return ""
    return f"it was built by {engine.backend} {engine.backend_version}"


def _is_on(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "").casefold() in ("true", "1", "on", "yes")

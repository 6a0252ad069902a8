"""The environment of a measurement: the machine and the software that ran it, and its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginehouse.bench.rows import present

# Instruction sets that decide how fast inference on a CPU can be.
_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML names it. Memory in bytes."""

    index: int
    product: str
    memory_bytes: int | None = None
    compute_capability: str | None = None
    power_limit_w: float | None = None


@dataclass(frozen=True)
class Gpus:
    """The machine's GPUs; `missing` says why there are none."""

    devices: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda_driver: str | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Machine:
    """Hardware and operating system. Memory in bytes; `usable_cores` is what this process may run on."""

    cpu: str | None
    cpu_flags: tuple[str, ...]
    sockets: int | None
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: int | None
    memory_bytes: int | None
    gpus: Gpus
    os: str
    kernel: str
    architecture: str


@dataclass(frozen=True)
class Environment:
    """A machine, and the software that did the inference on it.

    Attributes:
        scope_of: what the software was: "worker" (a worker process here) or "service" (the inference service).
        software: versions by name, such as {"python": "3.10.13", "onnxruntime": "1.23.2"}.
        settings: environment variables that change speed, where they are set.
    """

    machine: Machine
    software: Mapping[str, str]
    scope_of: str = "worker"
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = present(dataclasses.asdict(self))
        return value

    @property
    def digest(self) -> str:
        """The key in `environments.json`: equal environments have equal digests on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


_SETTINGS = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY", "KMP_BLOCKTIME", "TF_ENABLE_ONEDNN_OPTS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS", "ONEDNN_MAX_CPU_ISA", "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE",
    "CUDA_MODULE_LOADING",
    "MALLOC_ARENA_MAX", "LD_PRELOAD",
)  # fmt: skip


def speed_settings() -> dict[str, str]:
    """The environment variables that change the speed of inference, where they are set."""
    return {name: os.environ[name] for name in _SETTINGS if name in os.environ}


def bench_software() -> dict[str, str]:
    """Versions of what this process measures with."""
    from enginehouse.bench import package_version

    return {"enginehouse": package_version(), "bench python": platform.python_version()}


def worker_pids() -> frozenset[int]:
    """Processes on this machine that are workers of Enginehouse, the inference service's among them."""
    import psutil

    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if "enginehouse_worker" in (process.info["cmdline"] or ()):
            found.add(process.pid)
    return frozenset(found)


def read_machine() -> Machine:
    """What this machine is. A fact that cannot be read is None."""
    import psutil

    cpu, flags, sockets = _cpu(Path("/proc/cpuinfo"))
    try:
        usable: int | None = len(os.sched_getaffinity(0))
    except AttributeError:
        usable = None
    return Machine(
        cpu=cpu or platform.processor() or None,
        cpu_flags=flags,
        sockets=sockets,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        usable_cores=_quota(Path("/sys/fs/cgroup/cpu.max"), usable),
        memory_bytes=_memory(Path("/sys/fs/cgroup/memory.max"), psutil.virtual_memory().total),
        gpus=read_gpus(),
        os=_os_name(),
        kernel=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
    )


def read_gpus() -> Gpus:
    """The GPUs that NVML lists, or why it lists none."""
    try:
        import pynvml
    except ImportError:
        return Gpus(missing="no NVIDIA GPU can be seen: the nvidia-ml-py package is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return Gpus(missing="no NVIDIA GPU: NVML library not found")
    except pynvml.NVMLError as error:
        return Gpus(missing=f"no NVIDIA GPU: NVML does not start: {error}")
    try:
        count = int(pynvml.nvmlDeviceGetCount())
        if count == 0:
            return Gpus(missing="no NVIDIA GPU: NVML lists none")
        return Gpus(
            devices=tuple(_gpu(pynvml, index) for index in range(count)),
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            cuda_driver=_cuda(int(pynvml.nvmlSystemGetCudaDriverVersion())),
        )
    except pynvml.NVMLError as error:
        return Gpus(missing=f"no usable NVIDIA GPU: NVML failed: {error}")
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def read(call: str) -> Any:
        try:
            return getattr(nvml, call)(handle)
        except nvml.NVMLError:
            return None

    memory, capability = read("nvmlDeviceGetMemoryInfo"), read("nvmlDeviceGetCudaComputeCapability")
    limit = read("nvmlDeviceGetEnforcedPowerLimit")
    return Gpu(
        index=index,
        product=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=None if memory is None else int(memory.total),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        power_limit_w=None if limit is None else limit / 1000,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cuda(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _cpu(path: Path) -> tuple[str | None, tuple[str, ...], int | None]:
    """Model name, known flags and sockets, from the kernel's list of processors."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return None, (), None
    fields: dict[str, str] = {}
    sockets = set()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
        if name.strip() == "physical id":
            sockets.add(value.strip())
    present_flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name"), tuple(flag for flag in _FLAGS if flag in present_flags), len(sockets) or None


def _quota(path: Path, usable: int | None) -> int | None:
    """Cores that the container's quota leaves of `usable`, at least one."""
    try:
        quota, period = path.read_text("ascii").split()
        cores = max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return usable
    return cores if usable is None else min(usable, cores)


def _memory(path: Path, total: int) -> int:
    """The container's memory limit where it is below the machine's memory."""
    try:
        return min(total, int(path.read_text("ascii")))
    except (OSError, ValueError):
        return total


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", sys.platform)
    except OSError:
        return platform.platform(terse=True)

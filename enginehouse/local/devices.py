"""The devices of this machine that inference processes may run on: its GPUs as NVML shows them, or the CPU."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginehouse.errors import EnginehouseError, FailedPreconditionError, InvalidArgumentError
from enginehouse.workers.environments import WorkerEnvironments

CPU = "cpu"
NVML_SECONDS = 20.0
_GPU = re.compile(r"(?:cuda|gpu)(?::(\d+))?")


@dataclass(frozen=True)
class LocalDevice:
    """A device. `id` is what ENGINEHOUSE_DEVICE takes, such as "cuda:1"; `name` its product, empty when not known."""

    id: str
    name: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine, in NVML's order, which is that of PCI addresses."""

    uuid: str
    name: str


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this machine; `reason` says why there are none."""

    found: tuple[Gpu, ...]
    reason: str = ""


def choose_devices(text: str | None, variables: Mapping[str, str], gpus: Gpus | None = None) -> list[LocalDevice]:
    """The devices to serve on, one process each.

    Args:
        text: "all" (every GPU), "cpu", or a list such as "cuda:0,cuda:1". None: what ENGINEHOUSE_DEVICE says; else
            every GPU where there are some and the worker environment of TensorRT is installed; else the CPU.
        variables: the environment.
        gpus: of this machine; asked of NVML where it matters when None.

    Raises:
        InvalidArgumentError: it is no such list, or names a device twice.
        FailedPreconditionError: a GPU is not there.
    """
    said = variables.get("ENGINEHOUSE_DEVICE", "") if text is None else ""
    if CPU in (text, said) or (text is None and not said and not _has_tensorrt(variables)):
        return [LocalDevice(CPU)]
    there = visible(gpus if gpus is not None else query_gpus(), variables)
    every = [LocalDevice(f"cuda:{number}", gpu.name) for number, gpu in enumerate(there.found)]
    if said:  # the process that gets it judges it
        return [next((device for device in every if device.id == said), LocalDevice(said))]
    if text is None:
        return every or [LocalDevice(CPU)]
    if text == "all":
        if not every:
            raise FailedPreconditionError(f"this machine has no GPU to serve on: {there.reason}. `--devices cpu` does")
        return every
    return [_named(name, every, there.reason) for name in _distinct(text)]


def visible(gpus: Gpus, variables: Mapping[str, str]) -> Gpus:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; all without it. CUDA stops at an entry that is none."""
    text = variables.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return gpus
    found: list[Gpu] = []
    for entry in (part.strip() for part in text.split(",")):
        gpu = next(
            (g for n, g in enumerate(gpus.found) if entry and (entry == str(n) or g.uuid.startswith(entry))), None
        )
        if gpu is None or gpu in found:
            break
        found.append(gpu)
    reason = gpus.reason if not gpus.found else f"CUDA_VISIBLE_DEVICES is {text!r}"
    return Gpus(tuple(found), "" if found else reason)


def query_gpus(seconds: float = NVML_SECONDS) -> Gpus:
    """Ask NVML. A driver that does not answer counts as none: it may hang for ever."""
    answer: list[Gpus] = []
    thread = threading.Thread(target=lambda: answer.append(_query()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else Gpus((), f"NVML did not answer within {seconds:g} s")


def _query() -> Gpus:
    try:
        import pynvml as nv
    except ImportError:
        return Gpus((), "nvidia-ml-py is not installed: pip install 'enginehouse[cli]'")
    try:
        nv.nvmlInit()
    except nv.NVMLError as error:
        return Gpus((), f"NVML: {error}")
    try:
        handles = [nv.nvmlDeviceGetHandleByIndex(number) for number in range(nv.nvmlDeviceGetCount())]
        found = tuple(Gpu(_text(nv.nvmlDeviceGetUUID(h)), _text(nv.nvmlDeviceGetName(h))) for h in handles)
        return Gpus(found, "" if found else "NVML counts none")
    except nv.NVMLError as error:
        return Gpus((), f"NVML: {error}")
    finally:
        nv.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _has_tensorrt(variables: Mapping[str, str]) -> bool:
    try:
        WorkerEnvironments.discover(variables).for_backend("tensorrt")
    except EnginehouseError:
        return False
    return True


def _distinct(text: str) -> Sequence[str]:
    items = [item.strip() for item in text.split(",") if item.strip()]
    names = [CPU if item == CPU else f"cuda:{_number(item)}" for item in items]
    if not names or len(set(names)) != len(names):
        raise InvalidArgumentError(
            f"devices {text!r} is not valid: expected all, cpu, or devices such as cuda:0,cuda:1, each once"
        )
    return names


def _number(item: str) -> int:
    match = _GPU.fullmatch(item)
    if match is None:
        raise InvalidArgumentError(f"device {item!r} is not valid: expected all, cpu, or devices such as cuda:0,cuda:1")
    return int(match.group(1) or 0)


def _named(name: str, every: Sequence[LocalDevice], reason: str) -> LocalDevice:
    if name == CPU:
        return LocalDevice(CPU)
    for device in every:
        if device.id == name:
            return device
    there = ", ".join(f"{d.id} ({d.name})" for d in every) or f"none ({reason})"
    raise FailedPreconditionError(f"there is no {name} on this machine; its GPUs: {there}")

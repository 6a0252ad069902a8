"""What an engine and its instances take of the device's memory, and what to say when it is not there. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Footprint:
    """Bytes of one instance: TensorRT's activations, and `slots` times the inputs and outputs at their largest."""

    activations: int
    tensors: int
    slots: int

    @property
    def total(self) -> int:
        return self.activations + self.slots * self.tensors


def shortage(instance: Footprint, weights: int, memory: tuple[int, int] | None) -> str:
    """What an instance needs and what there is, for an error.

    Args:
        weights: bytes that the plan took when it was loaded.
        memory: free and total bytes of the device, where it says.
    """
    there = f"{_mib(memory[0])} of {_mib(memory[1])} MiB are free" if memory else "how much is free is unknown"
    return (
        f"out of device memory: an instance needs {_mib(instance.total)} MiB ({_mib(instance.activations)} for "
        f"TensorRT's activations, {instance.slots} times {_mib(instance.tensors)} for inputs and outputs) beside the "
        f"{_mib(weights)} MiB that the plan takes, and {there}; use fewer instances, the option ring=1, or an engine "
        "for smaller batches"
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}"

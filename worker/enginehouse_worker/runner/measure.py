"""Timing an engine where it runs: random inputs back to back on one instance, no sockets in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from enginehouse_worker.backends.base import Array, Instance, Signature, TensorSpec, numpy_dtype
from enginehouse_worker.errors import WorkerError

SCOPES = ("host", "engine")


@runtime_checkable
class DeviceTimed(Protocol):
    """An instance that can compute on what is in its device buffers, without copies from and to the host."""

    def launch(self, shapes: tuple[tuple[int, ...], ...], *, copies: bool = True) -> None:
        """Start a batch of these input shapes."""

    def wait(self) -> None:
        """Wait for all that was launched."""


@dataclass(frozen=True)
class Measured:
    """Wall time of every run, and of all together; `cpu_ns` is that of the whole process, all threads."""

    latencies_ns: list[int]
    cpu_ns: int
    wall_ns: int
    inferences: int


def random_inputs(
    signature: Signature, batch: int, *, seed: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Array]:
    """One random array per input, the same for the same seed.

    Args:
        batch: dimension 0 of every input when the signature is batched.
        shapes: whole shapes by input name, for inputs whose other dynamic dimensions should not be 1.
    """
    generator = np.random.default_rng(seed)
    return {
        spec.name: _random(generator, spec, (shapes or {}).get(spec.name) or _shape(spec, signature.batched, batch))
        for spec in signature.inputs
    }


def run_for(
    instance: Instance,
    signature: Signature,
    *,
    batch: int,
    seconds: float,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    scope: str = "host",
) -> Measured:
    """Run one batch again and again for `seconds` (at least once), each begun when the one before is done.

    Args:
        scope: "host" from host memory to host memory, "engine" from device buffers to device buffers.

    Raises:
        WorkerError: INVALID_ARGUMENT when batch, seconds or scope make no sense; FAILED_PRECONDITION when the backend
            cannot leave out the copies.
    """
    if scope not in SCOPES:
        raise WorkerError("INVALID_ARGUMENT", f"scope {scope!r}; expected one of {', '.join(SCOPES)}")
    if batch < 1 or not 0 <= seconds <= 3600:
        raise WorkerError("INVALID_ARGUMENT", f"batch {batch} for {seconds} s; expected at least 1, and 0 to 3600 s")
    inputs = random_inputs(signature, batch, seed=seed, shapes=shapes)
    step = _on_device(instance, inputs, signature) if scope == "engine" else lambda: instance.run(inputs, ())
    latencies: list[int] = []
    cpu = time.process_time_ns()
    begin = last = time.perf_counter_ns()
    end = begin + int(seconds * 1e9)
    while not latencies or last < end:
        step()
        now = time.perf_counter_ns()
        latencies.append(now - last)
        last = now
    return Measured(latencies, time.process_time_ns() - cpu, last - begin, len(latencies) * batch)


def _on_device(instance: Instance, inputs: Mapping[str, Array], signature: Signature) -> Callable[[], object]:
    """One batch on what an earlier one left in device memory."""
    if not isinstance(instance, DeviceTimed):
        raise WorkerError("FAILED_PRECONDITION", "this runtime copies with every batch: measure scope host")
    timed = instance
    instance.run(inputs, ())  # real values in the device's buffers: power and time depend on them
    order = tuple(tuple(inputs[spec.name].shape) for spec in signature.inputs)

    def step() -> None:
        timed.launch(order, copies=False)
        timed.wait()

    return step


def _shape(spec: TensorSpec, batched: bool, batch: int) -> tuple[int, ...]:
    shape = tuple(1 if d < 0 else d for d in spec.shape)
    return (batch, *shape[1:]) if batched and shape else shape


def _random(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.dtype == "BYTES":
        texts = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=np.object_)
        texts[:] = [b"%d" % n for n in generator.integers(0, 10, size=texts.size)]
        return texts.reshape(shape)
    if spec.dtype == "BOOL":
        return generator.integers(0, 2, size=shape).astype(np.bool_)
    if spec.dtype == "BF16":
        # The upper half of a float32 is a bfloat16.
        return (generator.random(shape, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
    kind = numpy_dtype(spec.dtype)
    if kind.kind == "f":
        return generator.random(shape, dtype=np.float32).astype(kind)
    # Small, so that indices into embeddings stay inside them.
    return generator.integers(0, 2, size=shape).astype(kind)

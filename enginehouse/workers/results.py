"""What a worker answers: a loaded engine, a measurement, an inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enginehouse.workers.framing import Frame
from enginehouse.workers.tensors import Array, TensorOutput, TensorSpec


@dataclass(frozen=True)
class LoadedModel:
    """What a worker says of an engine it loaded. `max_batch_size` 0: the engine names no limit.

    `concurrency`: batches that one instance takes at once, to copy one while it computes another.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    max_batch_size: int
    seconds: float
    memory_bytes: int
    device_memory_bytes: int = 0
    concurrency: int = 1


@dataclass(frozen=True)
class Measurement:
    """Runs back to back inside the worker: wall time of each, CPU time of the worker process and wall time of all."""

    latencies_ns: tuple[int, ...]
    cpu_ns: int
    wall_ns: int
    inferences: int


class InferenceResult:
    """Outputs of one `infer`, and where its time went.

    The outputs' data are views of shared memory: use the result in a `with` block, or `release()` it, when they have
    been read. A result that is dropped releases itself.
    """

    def __init__(self, outputs: tuple[TensorOutput, ...], frame: Frame, release: Callable[[set[int]], None]) -> None:
        self.outputs = outputs
        self.queue_ns = int(frame["queue_ns"])
        self.input_ns = int(frame["input_ns"])
        self.compute_ns = int(frame["compute_ns"])
        self.output_ns = int(frame["output_ns"])
        self._segments = used_segments(frame)
        self._give_back: Callable[[set[int]], None] | None = release

    def array(self, name: str) -> Array:
        """A copy of the output of that name."""
        return next(t for t in self.outputs if t.name == name).array()

    def arrays(self) -> dict[str, Array]:
        """Copies of all outputs by name."""
        return {t.name: t.array() for t in self.outputs}

    def release(self) -> None:
        """The worker may write its segment again; the outputs' data must not be read any more."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self._segments)

    def __enter__(self) -> InferenceResult:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def used_segments(frame: Frame) -> set[int]:
    """The worker's segments that a `result` frame's outputs lie in."""
    return {int(t["segment"]) for t in frame["outputs"] if "segment" in t}


def loaded_model(frame: Frame) -> LoadedModel:
    """What a `loaded` frame says."""
    return LoadedModel(
        inputs=tuple(TensorSpec.from_json(t) for t in frame["inputs"]),
        outputs=tuple(TensorSpec.from_json(t) for t in frame["outputs"]),
        batched=bool(frame["batched"]),
        max_batch_size=int(frame["max_batch_size"]),
        seconds=float(frame["seconds"]),
        memory_bytes=int(frame["memory_bytes"]),
        device_memory_bytes=int(frame.get("device_memory_bytes") or 0),
        concurrency=max(int(frame.get("concurrency") or 1), 1),
    )

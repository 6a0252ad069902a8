"""What a backend is: a builder that makes engines and a runtime that runs them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from enginehouse_worker.errors import WorkerError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine.

    `dtype` is the Open Inference Protocol's name (FP32, UINT8, BYTES, ...); `shape` has -1 for a dynamic dimension.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TensorSpec:
        return cls(name=str(value["name"]), dtype=str(value["dtype"]), shape=tuple(int(d) for d in value["shape"]))


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model or an engine; `batched` when dimension 0 of each is the batch."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "batched": self.batched,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Signature:
        return cls(
            inputs=tuple(TensorSpec.from_json(t) for t in value["inputs"]),
            outputs=tuple(TensorSpec.from_json(t) for t in value["outputs"]),
            batched=bool(value["batched"]),
        )


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes an engine is built for (an optimization profile along dimension 0)."""

    min: int
    opt: int
    max: int


class Instance(Protocol):
    """One execution context. Not thread-safe: one thread uses it at a time."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Compute the named outputs (all when empty). Arrays are host memory; BYTES are object arrays of bytes."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class FilePiece:
    """Bytes of a file that its owner may truncate: a process that touches a map of such a file may be killed.

    `mapped`: they are page-locked there, so that a device may copy from it whatever becomes of the file; for nobody
    else to read.
    """

    descriptor: int
    offset: int
    size: int
    mapped: Array | None = None

    def read_into(self, place: Array) -> None:
        """Fill an array of as many bytes.

        Raises:
            WorkerError: INVALID_ARGUMENT when the file ends before.
        """
        memory, done = place.data, 0
        while done < self.size:
            count = os.preadv(self.descriptor, [memory[done:]], self.offset + done)
            if not count:
                end = self.offset + self.size
                message = f"shared memory ends after {self.offset + done} bytes; expected {end}"
                raise WorkerError("INVALID_ARGUMENT", message)
            done += count


@dataclass(frozen=True)
class Pieces:
    """An array in C order whose bytes lie in several places of the host: `parts`, in order; arrays flat and UINT8."""

    parts: tuple[Array | FilePiece, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def write_to(self, place: Array) -> None:
        """Copy the bytes into a contiguous array of as many."""
        flat, position = place.reshape(-1).view(np.uint8), 0
        for part in self.parts:
            target = flat[position : position + part.size]
            if isinstance(part, FilePiece):
                part.read_into(target)
            else:
                np.copyto(target, part)
            position += part.size

    def joined(self) -> Array:
        """A copy in one piece."""
        whole = np.empty(self.shape, self.dtype)
        self.write_to(whole)
        return whole


class DeviceArray(Protocol):
    """An array in device memory, in the form that array libraries exchange."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


@runtime_checkable
class PipelinedInstance(Protocol):
    """An instance that takes a batch while others are under way. One thread begins, one other may finish."""

    ring: int

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """As `Instance.run`."""

    def output_shapes(self, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of all outputs for inputs of these shapes."""

    def begin(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        """Begin a batch, with at most `ring` begun and not finished; returns what `finish` takes.

        Args:
            inputs: NumPy arrays, `Pieces` and `DeviceArray`s; they must stay as they are until the batch is finished.
            outputs: for each wanted output the array, of either kind, that it is written to.
        """

    def finish(self, ticket: Any) -> None:
        """Wait until a batch's outputs are where they were to go."""

    def close(self) -> None: ...


class DeviceRegion(Protocol):
    """Another process's device memory."""

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> DeviceArray:
        """An array in it; INVALID_ARGUMENT when it does not lie in the region."""

    def close(self) -> None:
        """Unmap it; nothing may be using it."""


class DeviceMemory(Protocol):
    """What a device does with memory that others own. Thread-safe."""

    def register(self, address: int, size: int, *, writable: bool) -> bool:
        """Let the device copy from and to host memory where it is; False when that cannot be."""

    def unregister(self, address: int) -> None:
        """Undo `register`."""

    def open_region(self, handle: bytes, size: int) -> DeviceRegion:
        """Open memory by its handle; INVALID_ARGUMENT for one that opens nothing."""

    def check(self) -> None:
        """End the process when the device can no longer be used by it, which no call may have told yet."""


@runtime_checkable
class DeviceMemoryBackend(Protocol):
    """A backend whose instances are pipelined and take device memory."""

    def device_memory(self, device: str) -> DeviceMemory: ...


class LoadedEngine(Protocol):
    """An engine in memory, from which instances are made."""

    @property
    def signature(self) -> Signature: ...

    def new_instance(self) -> Instance: ...

    def close(self) -> None: ...


class Backend(Protocol):
    """A builder and a runtime. Importing the module that holds it must not import the framework."""

    name: str

    def version(self) -> str:
        """The framework's exact version, e.g. "1.23.2"."""

    def build(
        self, model: Path, output: Path, *, precision: str, profile: BatchProfile, options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Build an engine from a stage's output directory into `output`; returns what `engine.json` says.

        Raises:
            WorkerError: INVALID_ARGUMENT or FAILED_PRECONDITION naming what this backend cannot do.
        """

    def load(self, engine: Path, *, device: str, options: Mapping[str, Any]) -> LoadedEngine:
        """Load an engine directory (`engine.json` and payload)."""


@runtime_checkable
class TimingCacheBackend(Protocol):
    """A backend whose builds go faster with what an earlier build for the same device measured."""

    name: str
    takes_timing_cache: bool

    def build(
        self,
        model: Path,
        output: Path,
        *,
        precision: str,
        profile: BatchProfile,
        options: Mapping[str, Any],
        timing_cache: Path | None = None,
    ) -> dict[str, Any]:
        """As `Backend.build`. `timing_cache` is a directory that may hold a `timing.cache`; `output` gets a new one."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype for an Open Inference Protocol dtype; BF16 as raw uint16, BYTES as object.

    Raises:
        ValueError: the name is none of the protocol's.
    """
    if name not in _NUMPY:
        raise ValueError(f"unknown dtype {name!r}: expected one of {', '.join(sorted(_NUMPY))}")
    dtype: np.dtype[Any] = np.dtype(_NUMPY[name])
    return dtype


def protocol_dtype(dtype: np.dtype[Any]) -> str:
    """The Open Inference Protocol's name of a NumPy dtype.

    Raises:
        ValueError: the protocol has no such dtype.
    """
    if dtype.kind in "OSU":
        return "BYTES"
    for name, known in _NUMPY.items():
        if name not in ("BF16", "BYTES") and np.dtype(known) == dtype:
            return name
    raise ValueError(f"the Open Inference Protocol has no dtype for NumPy's {dtype}")


_NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": np.uint16,
    "BYTES": np.object_,
}

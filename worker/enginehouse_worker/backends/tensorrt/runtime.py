"""Loads plans, and says what of the device they take."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse_worker.backends.base import BatchProfile, Signature, TensorSpec, numpy_dtype
from enginehouse_worker.backends.engine_files import read_engine
from enginehouse_worker.backends.tensorrt import contexts, cuda
from enginehouse_worker.backends.tensorrt.instance import TensorRtInstance
from enginehouse_worker.backends.tensorrt.library import Library, open_library
from enginehouse_worker.backends.tensorrt.options import LoadOptions, load_options
from enginehouse_worker.backends.tensorrt.refit import refit
from enginehouse_worker.errors import WorkerError

# By TensorRT's names. BF16 is raw, as in the protocol.
_NUMPY: Mapping[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}


def load(engine: Path, *, device: str, options: Mapping[str, Any]) -> TensorRtEngine:
    """Load an engine directory on a GPU; `options` override those it was built with.

    Raises:
        WorkerError: FAILED_PRECONDITION when it was built for another GPU or version of TensorRT; RESOURCE_EXHAUSTED
            when the device's memory does not hold it.
    """
    library = open_library()
    description = read_engine(engine, "tensorrt")
    chosen = load_options({**description.get("options", {}), **options})
    facts = cuda.open_device(device)
    check_fits(description, library.trt.__name__, library.trt.__version__, facts)
    data = (engine / description["payload"]).read_bytes()
    runtime = library.trt.Runtime(library.logger)
    if description.get("version_compatible") and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    before = cuda.free_memory()
    made = runtime.deserialize_cuda_engine(data)
    if made is None:
        reason = library.messages.take_errors() or "no reason given"
        if _out_of_memory(reason, "loading a plan"):
            there = f"{before[0] >> 20} of {before[1] >> 20} MiB were free" if before else "free memory unknown"
            message = f"out of device memory: the plan has {len(data) >> 20} MiB, and {there}: {reason}"
            raise WorkerError("RESOURCE_EXHAUSTED", message)
        raise WorkerError("FAILED_PRECONDITION", f"TensorRT cannot load the engine: {reason}")
    refit(library, made, engine, description)
    after = cuda.free_memory()
    weights = max(before[0] - after[0], 0) if before and after else 0
    profiles = tuple(BatchProfile(**item) for item in description["profiles"])
    return TensorRtEngine(library, runtime, made, Signature.from_json(description), profiles, chosen, facts, weights)


def check_fits(description: Mapping[str, Any], module: str, version: str, facts: cuda.DeviceFacts) -> None:
    """Raise FAILED_PRECONDITION, naming both sides, for a plan of another GPU or TensorRT."""
    built = description.get("device", {})
    product, capability = str(built.get("product", "")), str(built.get("compute_capability", ""))
    same_device = capability == facts.compute_capability and product in ("any", facts.product)
    ampere = float(facts.compute_capability) >= 8.0
    if not same_device and not (description.get("hardware_compatible") and ampere):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built for {product} (compute capability {capability}); this GPU is "
            f"{facts.product} ({facts.compute_capability}). Build one for it: enginehouse optimize MODEL --target "
            f"tensorrt:{str(description.get('precision', 'fp16')).lower()} on a machine with that GPU",
        )
    library = str(description.get("library", module))
    if ("rtx" in library) != ("rtx" in module):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built by {library!r}, and {module!r} is installed here: neither of TensorRT and "
            "TensorRT for RTX runs the other's engines; build it again with this one",
        )
    theirs = str(description.get("backend_version", ""))
    same_major = theirs.partition(".")[0] == version.partition(".")[0]
    if theirs != version and not (description.get("version_compatible") and same_major):
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"the engine was built by TensorRT {theirs} and {module} {version} is installed here: build it again with "
            "this version, or with the option version_compatible=true",
        )


def _out_of_memory(reason: str, what: str) -> bool:
    """Whether a call of TensorRT that returned nothing failed for want of memory."""
    error = cuda.runtime().cudaPeekAtLastError()[0]
    cuda.check_alive(error, what)
    return getattr(error, "name", "") == "cudaErrorMemoryAllocation" or "out of memory" in reason.lower()


class TensorRtEngine:
    """A plan in device memory.

    Args:
        weight_bytes: what the plan took of the device's memory when it was loaded.
    """

    def __init__(
        self,
        library: Library,
        runtime: Any,
        engine: Any,
        signature: Signature,
        profiles: tuple[BatchProfile, ...],
        options: LoadOptions,
        facts: cuda.DeviceFacts,
        weight_bytes: int = 0,
    ) -> None:
        self.library = library
        self.engine = engine
        self.profiles = profiles
        self.options = options
        self.device = facts
        self.weight_bytes = weight_bytes
        self._runtime = runtime
        self._signature = signature
        self._lock = threading.Lock()
        self._instance_bytes = 0
        self._free_profiles = list(range(len(profiles)))

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def concurrency(self) -> int:
        """Batches that one instance takes at once."""
        return self.options.ring

    @property
    def device_memory_bytes(self) -> int:
        """What the plan and its instances took of the device's memory; CUDA's own (kernels, graphs) is not in it."""
        with self._lock:
            return self.weight_bytes + self._instance_bytes

    def count_instance(self, size: int) -> None:
        """Add to what the instances took."""
        with self._lock:
            self._instance_bytes += size

    def activation_bytes(self) -> int:
        """What TensorRT needs for the activations of one execution context."""
        newer = getattr(self.engine, "device_memory_size_v2", None)  # TensorRT 10; the only one in 11
        return int(self.engine.device_memory_size if newer is None else newer)

    def take_profile(self) -> int | None:
        """The profile that a new instance owns; None where instances share profiles.

        Raises:
            WorkerError: FAILED_PRECONDITION when every profile has its instance.
        """
        if self._shares_profiles():
            return None
        with self._lock:
            if self._free_profiles:
                return self._free_profiles.pop(0)
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"{self.library.name} needs an optimization profile for each instance and the engine has "
            f"{len(self.profiles)}: load fewer instances, or build it with more in the option profiles (min:opt:max "
            "with commas between); TensorRT 8.6 and later share profiles",
        )

    def give_profile(self, profile: int | None) -> None:
        """Give a profile back."""
        if profile is not None:
            with self._lock:
                self._free_profiles = sorted([*self._free_profiles, profile])

    def _shares_profiles(self) -> bool:
        if self.library.rtx or self.library.flag("PreviewFeature", "PROFILE_SHARING_0806") is not None:
            return True
        return int(str(self.library.trt.__version__).partition(".")[0]) >= 10

    def new_context(self) -> Any:
        """An execution context without memory for activations.

        Raises:
            WorkerError: RESOURCE_EXHAUSTED when the device's memory does not hold another.
        """
        context = contexts.create(self.engine, getattr(self.library.trt, "ExecutionContextAllocationStrategy", None))
        if context is None:
            reason = self.library.messages.take_errors() or "no reason given"
            code = "RESOURCE_EXHAUSTED" if _out_of_memory(reason, "making an execution context") else "INTERNAL"
            raise WorkerError(code, f"TensorRT cannot make an execution context: {reason}")
        return context

    def tensor_type(self, spec: TensorSpec) -> np.dtype[Any]:
        """What the engine stores a tensor in: TensorRT 8 has no INT64, and no version has FP64.

        Raises:
            WorkerError: FAILED_PRECONDITION when that is no narrower form of what the signature says.
        """
        name = self.engine.get_tensor_dtype(spec.name).name
        dtype: np.dtype[Any] = np.dtype(_NUMPY.get(name, np.void))
        if not np.can_cast(numpy_dtype(spec.dtype), dtype, "same_kind") or dtype.kind != numpy_dtype(spec.dtype).kind:
            raise WorkerError("FAILED_PRECONDITION", f"tensor {spec.name!r} is {spec.dtype}; the engine has {name}")
        return dtype

    def new_instance(self) -> TensorRtInstance:
        """A context with its stream and memory. Belongs to the thread that asks for it.

        Raises:
            WorkerError: RESOURCE_EXHAUSTED when the device's memory does not hold another.
        """
        return TensorRtInstance(self)

    def close(self) -> None:
        self.engine = None
        self._runtime = None

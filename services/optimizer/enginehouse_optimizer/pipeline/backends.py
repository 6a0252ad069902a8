"""What each backend can do, as data: a new backend joins by a row here and an environment on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from enginehouse.workers.environments import BACKEND_ENVIRONMENTS

# Environments that stages run in whatever the backend.
FREEZING = "tensorflow"
QUANTIZING = "onnxruntime"


@dataclass(frozen=True)
class Backend:
    """A row of the table.

    Attributes:
        builds_from: the stage whose output an unquantized engine is built from.
        precisions: names of `Precision` less their prefix.
        dialect: how Q/DQ is placed for it; None when it takes no quantized graph.
        options: build options that it knows, each with what it means.
        device: "cpu" or "gpu".
        timing_cache: whether its builds take and give back what they measured.
        calibrates: whether it calibrates INT8 itself while it builds, so that its build takes the data.
    """

    name: str
    builds_from: str
    precisions: frozenset[str]
    dialect: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    timing_cache: bool = False
    calibrates: bool = False

    @property
    def environment(self) -> str:
        return BACKEND_ENVIRONMENTS[self.name]


# Precisions for which data or a calibration table is needed.
QUANTIZED = frozenset({"INT8", "FP8"})

BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        backend.name: backend
        for backend in (
            Backend(
                "onnxruntime",
                "convert",
                frozenset({"FP32", "INT8"}),
                dialect="onnxruntime",
                options={
                    "intra_op_threads": "threads of one operator; 0: one a core",
                    "inter_op_threads": "operators run at once",
                    "graph_optimization": "all, extended, basic or disabled",
                    "spinning": "true: idle threads wait in a loop; false: they sleep",
                },
            ),
            Backend(
                "tensorflow",
                "freeze",
                frozenset({"FP32"}),
                options={
                    "intra_op_threads": "threads of one operator; 0: one a core",
                    "inter_op_threads": "operators run at once",
                    "tf32": "true: on a GPU, products of FP32 values may round to TF32",
                },
            ),
            Backend(
                "tensorrt",
                "convert",
                frozenset({"FP32", "TF32", "FP16", "BF16", "INT8", "FP8"}),
                dialect="tensorrt",
                options={
                    "profiles": "more optimization profiles: min:opt:max batch sizes, commas between",
                    "shapes": "ranges of dynamic dimensions after the batch: ids=16/128/512,mask=16/128/512",
                    "optimization_level": "0 to 5: how long TensorRT searches",
                    "aux_streams": "0 to 7: most streams for layers that do not wait for each other",
                    "workspace_mib": "most scratch memory of a layer; 0: what the device has",
                    "version_compatible": "true: later versions of the same major TensorRT run the engine",
                    "hardware_compatible": "true: every GPU from Ampere on runs the engine",
                    "strip_weights": "true: leave the weights out of the plan",
                    "compute_capability": "TensorRT for RTX: build for this one, such as 8.9; verified where it is",
                    "cuda_graphs": "shapes whose CUDA graphs an instance keeps; 0: none",
                    "spinning": "true: threads wait for the GPU in a loop; false: they sleep",
                    "ring": "batches that an instance has begun at once",
                    "padding": "auto: rows run in a larger captured batch where that was faster; off: never",
                },
                device="gpu",
                timing_cache=True,
            ),
            Backend(
                "tf-trt",
                "freeze",
                frozenset({"FP32", "TF32", "FP16", "INT8"}),
                options={
                    "batches": "batch sizes to build engines for, commas between; INT8 has one engine",
                    "workspace_mib": "most scratch memory of a layer; 0: TF-TRT's own limit",
                    "minimum_segment": "fewest operators that become an engine",
                    "build_at_runtime": "true: build engines while serving, for batches that none fits",
                    "intra_op_threads": "threads of one operator; 0: one a core",
                    "inter_op_threads": "operators run at once",
                },
                device="gpu",
                calibrates=True,
            ),
        )
    }
)


def takes_table(backend: str, precision: str) -> bool:
    """Whether an engine is built from a graph that a calibration table quantized."""
    return precision in QUANTIZED and not BACKENDS[backend].calibrates


def backends_with(precision: str) -> list[str]:
    """Names of the backends that have a precision."""
    return sorted(backend.name for backend in BACKENDS.values() if precision in backend.precisions)

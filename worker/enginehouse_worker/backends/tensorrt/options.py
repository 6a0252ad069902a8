"""Build and load options of the TensorRT backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse_worker.backends import options as read
from enginehouse_worker.errors import WorkerError

BUILD_OPTIONS = (
    "profiles",
    "shapes",
    "optimization_level",
    "aux_streams",
    "workspace_mib",
    "version_compatible",
    "hardware_compatible",
    "strip_weights",
    "compute_capability",
)
LOAD_OPTIONS = ("cuda_graphs", "spinning", "ring", "padding")
_BOOLEAN = ("true", "false")


@dataclass(frozen=True)
class BuildOptions:
    """`optimization_level` 0 to 5 (-1: TensorRT's own), `workspace_mib` 0: what the device has.

    `aux_streams` 0 to 7: streams beside the instance's for layers that do not wait for each other (-1: TensorRT's own).
    `compute_capability` ("8.9", empty: the device's own) is TensorRT for RTX's: it builds without a GPU.
    """

    optimization_level: int
    workspace_mib: int
    version_compatible: bool
    hardware_compatible: bool
    strip_weights: bool
    compute_capability: str = ""
    aux_streams: int = -1


@dataclass(frozen=True)
class LoadOptions:
    """`cuda_graphs`: batch sizes whose graphs are kept for each instance; 0 captures none.

    `spinning`: a thread waits for the GPU in a loop, which is quicker by some microseconds and takes a core.
    `ring`: batches that an instance has begun at once, so that copies of one overlap the computation of another.
    `padding` "auto": rows run in a larger captured batch where that was measured to be faster; "off": never.
    """

    cuda_graphs: int
    spinning: bool
    ring: int = 3
    padding: str = "auto"


def build_options(options: Mapping[str, Any]) -> BuildOptions:
    """Read the options of a build; those of a load are checked and kept for it.

    Raises:
        WorkerError: INVALID_ARGUMENT for an unknown option or a bad value.
    """
    read.check_known(options, (*BUILD_OPTIONS, *LOAD_OPTIONS), "tensorrt")
    load_options(options)
    return BuildOptions(
        read.integer(options, "optimization_level", -1, -1, 5),
        read.integer(options, "workspace_mib", 0, 0, 1 << 20),
        _flag(options, "version_compatible"),
        _flag(options, "hardware_compatible"),
        _flag(options, "strip_weights"),
        _compute_capability(options),
        read.integer(options, "aux_streams", -1, -1, 7),
    )


def load_options(options: Mapping[str, Any]) -> LoadOptions:
    """Read the options of a load.

    Raises:
        WorkerError: INVALID_ARGUMENT for an unknown option or a bad value.
    """
    read.check_known(options, (*BUILD_OPTIONS, *LOAD_OPTIONS), "tensorrt")
    return LoadOptions(
        read.integer(options, "cuda_graphs", 16, 0, 4096),
        _flag(options, "spinning", "true"),
        read.integer(options, "ring", 3, 1, 16),
        read.choice(options, "padding", "auto", ("auto", "off")),
    )


def _compute_capability(options: Mapping[str, Any]) -> str:
    value = str(options.get("compute_capability", ""))
    if not re.fullmatch(r"(\d{1,2}\.\d)?", value):
        raise WorkerError(
            "INVALID_ARGUMENT", f"option 'compute_capability' is {value!r}; expected a GPU's, such as 8.9"
        )
    return value


def _flag(options: Mapping[str, Any], name: str, default: str = "false") -> bool:
    return read.choice(options, name, default, _BOOLEAN) == "true"

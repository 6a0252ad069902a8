"""Build and load options of the TF-TRT backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse_worker.backends import options as read
from enginehouse_worker.backends.base import BatchProfile
from enginehouse_worker.backends.tensorflow.runtime import THREADS, check_threads
from enginehouse_worker.errors import WorkerError

PRECISIONS = ("FP32", "TF32", "FP16", "INT8")
BUILD_OPTIONS = ("batches", "workspace_mib", "minimum_segment", "build_at_runtime")
OPTIONS = (*BUILD_OPTIONS, *THREADS)
_MAX_ENGINES = 64


@dataclass(frozen=True)
class BuildOptions:
    """How a graph is converted.

    Attributes:
        batches: batch sizes that engines are built for, ascending. A batch runs in the next larger one's engine.
        workspace_mib: most scratch memory of a layer; 0: TF-TRT's own limit.
        minimum_segment: fewest ops that become an engine.
        build_at_runtime: build an engine when a batch comes that none is for, while the request waits.
    """

    batches: tuple[int, ...]
    workspace_mib: int
    minimum_segment: int
    build_at_runtime: bool


def build_options(options: Mapping[str, Any], precision: str, profile: BatchProfile) -> BuildOptions:
    """Read the options of a build; those of a load are checked and kept for it.

    Raises:
        WorkerError: INVALID_ARGUMENT for an unknown option or a bad value; FAILED_PRECONDITION for a precision that
            TF-TRT does not have.
    """
    if precision not in PRECISIONS:
        raise WorkerError(
            "FAILED_PRECONDITION",
            f"backend 'tf-trt' has {', '.join(PRECISIONS)}, not {precision}; see backend 'tensorrt' for others",
        )
    check_options(options)
    return BuildOptions(
        batches=_batches(options, precision, profile),
        workspace_mib=read.integer(options, "workspace_mib", 0, 0, 1 << 20),
        minimum_segment=read.integer(options, "minimum_segment", 3, 1, 1 << 20),
        build_at_runtime=read.flag(options, "build_at_runtime", False),
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise INVALID_ARGUMENT for an unknown option or a bad number of threads."""
    read.check_known(options, OPTIONS, "tf-trt")
    check_threads(options)


def _batches(options: Mapping[str, Any], precision: str, profile: BatchProfile) -> tuple[int, ...]:
    """The sizes asked for, or the profile's. INT8 has one engine: calibration builds it, at the largest batch."""
    if "batches" not in options:
        return (profile.max,) if precision == "INT8" else tuple(sorted({profile.min, profile.opt, profile.max}))
    text = str(options["batches"]).strip()
    expected = (
        f"expected batch sizes from {profile.min} to {profile.max} with commas between, the largest among them, such "
        f"as {profile.min},{profile.max}"
    )
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        raise WorkerError("INVALID_ARGUMENT", f"option 'batches' is {options['batches']!r}; {expected}")
    sizes = tuple(sorted({int(size) for size in text.split(",")}))
    if sizes[0] < profile.min or sizes[-1] != profile.max or len(sizes) > _MAX_ENGINES:
        raise WorkerError("INVALID_ARGUMENT", f"option 'batches' is {text!r}; {expected} (at most {_MAX_ENGINES})")
    if precision == "INT8" and len(sizes) > 1:
        raise WorkerError(
            "INVALID_ARGUMENT",
            f"option 'batches' is {text!r} for INT8, which has one engine, built while it is calibrated at the largest "
            f"batch, {profile.max}; leave the option out, or build an engine of its own for each batch size",
        )
    return sizes

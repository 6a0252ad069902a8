"""Random inputs for a load generator, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.bench.seams import Tensor
from enginehouse.errors import FailedPreconditionError

_INTEGERS = {
    "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
}  # fmt: skip
_FLOATS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


def random_inputs(tensors: Sequence[Tensor], batch: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """One array for each input, dimension 0 the batch: floats from a normal distribution, integers in [0, 100).

    Raises:
        FailedPreconditionError: an input has a dynamic dimension besides the batch, or a dtype we cannot make up.
    """
    generator = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for tensor in tensors:
        shape = (batch, *tensor.shape[1:])
        if any(size < 0 for size in shape):
            raise FailedPreconditionError(
                f"input {tensor.name!r} has the shape {list(tensor.shape)}: the load generator "
                "needs every dimension but the batch fixed"
            )
        if tensor.dtype in _FLOATS:
            arrays[tensor.name] = generator.standard_normal(shape, dtype=np.float32).astype(_FLOATS[tensor.dtype])
        elif tensor.dtype in _INTEGERS:
            arrays[tensor.name] = generator.integers(0, 100, shape).astype(_INTEGERS[tensor.dtype])
        elif tensor.dtype == "BOOL":
            arrays[tensor.name] = generator.integers(0, 2, shape).astype(np.bool_)
        else:
            raise FailedPreconditionError(
                f"input {tensor.name!r} has dtype {tensor.dtype}: the load generator cannot make it up"
            )
    return arrays

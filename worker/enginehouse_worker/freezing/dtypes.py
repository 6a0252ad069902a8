"""TensorFlow's dtypes in the Open Inference Protocol's names."""

from __future__ import annotations

from typing import Any

from enginehouse_worker.errors import WorkerError

_NAMES = {
    "float32": "FP32",
    "float64": "FP64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "bool": "BOOL",
    "string": "BYTES",
    **{f"{prefix}int{bits}": f"{prefix.upper()}INT{bits}" for prefix in ("", "u") for bits in (8, 16, 32, 64)},
}


def protocol_name(dtype: Any) -> str:
    """The protocol's name of a `tf.DType`.

    Raises:
        WorkerError: INVALID_ARGUMENT when the protocol has none.
    """
    if dtype.name not in _NAMES:
        raise WorkerError("INVALID_ARGUMENT", f"a tensor has dtype {dtype.name}, which the inference protocol lacks")
    return _NAMES[dtype.name]

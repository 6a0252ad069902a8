"""Typed tensor contents (`InferTensorContents`) as raw bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from enginehouse.errors import InvalidArgumentError
from enginehouse.workers.tensors import encode_bytes, numpy_dtype

_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def raw_contents(name: str, dtype: str, contents: Any, count: int) -> bytes:
    """The raw bytes of an input's typed contents.

    Args:
        contents: an `InferTensorContents`.
        count: how many elements its shape has.

    Raises:
        InvalidArgumentError: naming the input, what came and what was expected.
    """
    field = _FIELDS.get(dtype)
    if field is None:
        raise InvalidArgumentError(f"input {name!r}: {dtype} has no typed contents: send it in raw_input_contents")
    values = getattr(contents, field)
    if len(values) != count:
        others = [d.name for d, _ in contents.ListFields() if d.name != field]
        hint = f" (it came in {', '.join(others)})" if others and not len(values) else ""
        raise InvalidArgumentError(
            f"input {name!r}: {len(values)} elements in {field}{hint}: expected {count} of {dtype} for its shape"
        )
    if dtype == "BYTES":
        return encode_bytes(values)
    try:
        return np.array(values, dtype=numpy_dtype(dtype)).tobytes()
    except (OverflowError, ValueError) as error:
        raise InvalidArgumentError(f"input {name!r}: a value does not fit {dtype}: {error}") from error

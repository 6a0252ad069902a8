"""How large tensors are, from their declarations."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper


def elements(dims: Iterable[int]) -> int:
    """The number of elements of a shape."""
    count = 1
    for size in dims:
        count *= size
    return count


def element_bits(data_type: int) -> int | None:
    """The bits of one element of an `onnx.TensorProto` type (8 for strings, whose size varies); None when unknown."""
    if data_type == onnx.TensorProto.STRING:
        return 8
    name = onnx.TensorProto.DataType.Name(data_type) if data_type in onnx.TensorProto.DataType.values() else ""
    if not name or name == "UNDEFINED":
        return None
    if name.startswith(("INT4", "UINT4", "FLOAT4")):
        return 4
    if name.startswith(("INT2", "UINT2")) and name in ("INT2", "UINT2"):
        return 2
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize) * 8

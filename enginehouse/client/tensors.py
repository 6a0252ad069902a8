"""Arrays to the Open Inference Protocol's bytes and back. Pure functions."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from enginehouse.client.values import TensorSpec
from enginehouse.errors import DataLossError, InvalidArgumentError

Array = npt.NDArray[Any]

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def datatype_of(array: Array) -> str:
    """The protocol's datatype of an array.

    Raises:
        InvalidArgumentError: it has none (complex numbers, dates).
    """
    if array.dtype.kind in "OSU":
        return "BYTES"
    if array.dtype.name == "bfloat16":  # ml_dtypes', without importing it
        return "BF16"
    try:
        return _NAMES[array.dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidArgumentError(f"the inference protocol has no datatype for arrays of {array.dtype}") from None


def fit(value: Any, spec: TensorSpec | None, casting: str = "safe") -> tuple[str, Array]:
    """A value as the datatype that an input wants: (datatype, array).

    Without a spec an array keeps its dtype. With one, an array is cast where NumPy's rule `casting` allows it: "safe"
    (no value can change, the default) or "same_kind" (such as float64 to float32). Lists and numbers are converted by
    their values. BF16 takes float32 arrays, rounded to the nearest.

    Raises:
        InvalidArgumentError: the dtype or the shape does not fit; the message says what to do.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal lengths
        name = repr(spec.name) if spec else "array"
        raise InvalidArgumentError(f"input {name} is no array: expected rows of one length ({error})") from None
    if spec is None:
        return datatype_of(array), array
    _check_shape(array, spec)
    if spec.dtype in ("BYTES", "BF16"):
        return spec.dtype, _check_special(array, spec)
    wanted = _DTYPES.get(spec.dtype)
    if wanted is None or array.dtype == wanted:
        return spec.dtype, array
    if not isinstance(value, np.ndarray | np.generic):
        return spec.dtype, _by_value(array, wanted, spec)
    if not np.can_cast(array.dtype, wanted, casting):  # type: ignore[arg-type]
        raise InvalidArgumentError(
            f"input {spec.name!r} takes {spec.dtype} and got {array.dtype}, which could lose values: pass "
            f"array.astype(np.{wanted.name}), or casting='same_kind' where that is enough"
        )
    return spec.dtype, array.astype(wanted)


def encode(datatype: str, array: Array) -> bytes:
    """An array's bytes on the wire: C order, little endian; BYTES elements each after their length."""
    if datatype == "BYTES":
        parts: list[bytes] = []
        for item in array.ravel(order="C"):
            data = item if isinstance(item, bytes) else str(item).encode()
            parts += (struct.pack("<I", len(data)), data)
        return b"".join(parts)
    if datatype == "BF16":
        return _bfloat16(array)
    return np.ascontiguousarray(array, dtype=_DTYPES[datatype]).tobytes()


def decode(datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """The array of a raw output; a read-only view of `data` where its datatype allows.

    Raises:
        DataLossError: the bytes are not what the datatype and shape need.
    """
    if datatype == "BYTES":
        return _bytes_array(shape, data)
    dtype = np.dtype("<u2") if datatype == "BF16" else _DTYPES.get(datatype)
    if dtype is None:
        raise DataLossError(f"the server sent a tensor of unknown datatype {datatype!r}")
    expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(data) != expected:
        raise DataLossError(f"a tensor of {datatype} and shape {list(shape)} has {len(data)} bytes, not {expected}")
    array = np.frombuffer(data, dtype=dtype)
    if datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(tuple(shape))


def decode_contents(datatype: str, shape: Sequence[int], contents: Any) -> Array:
    """The array of an output whose values came typed, as some servers send them."""
    values = getattr(contents, _CONTENTS[datatype])
    dtype = np.dtype(object) if datatype == "BYTES" else _DTYPES[datatype]
    array = np.empty(len(values), dtype=dtype)
    array[:] = values
    return array.reshape(tuple(shape))


def _check_shape(array: Array, spec: TensorSpec) -> None:
    fits = len(array.shape) == len(spec.shape) and all(
        want in (-1, got) for got, want in zip(array.shape, spec.shape, strict=True)
    )
    if fits:
        return
    hint = ""
    if len(array.shape) == len(spec.shape) - 1:
        hint = f": add the batch dimension, such as {spec.name}[None]"
    elif sorted(array.shape[1:]) == sorted(spec.shape[1:]) and len(array.shape) == 4:
        hint = ": are its channels on the other side? np.transpose moves them"
    raise InvalidArgumentError(
        f"input {spec.name!r} takes shape {list(spec.shape)} (-1 is any) and got {list(array.shape)}{hint}"
    )


def _check_special(array: Array, spec: TensorSpec) -> Array:
    if spec.dtype == "BYTES" and array.dtype.kind not in "OSU":
        raise InvalidArgumentError(f"input {spec.name!r} takes BYTES: expected bytes or strings, got {array.dtype}")
    if spec.dtype == "BF16" and array.dtype.name not in ("bfloat16", "float32", "float16"):
        raise InvalidArgumentError(
            f"input {spec.name!r} takes BF16: expected float32 (rounded to BF16 here) or bfloat16, got {array.dtype}"
        )
    return array


def _by_value(array: Array, wanted: np.dtype[Any], spec: TensorSpec) -> Array:
    """Numbers from lists: Python's have no precision of their own, but an integer input takes no fractions."""
    if array.dtype.kind not in "biuf":
        raise InvalidArgumentError(f"input {spec.name!r} takes {spec.dtype}: expected numbers, got {array.dtype}")
    cast = array.astype(wanted)
    if wanted.kind in "biu" and not np.array_equal(cast, array):
        raise InvalidArgumentError(f"input {spec.name!r} takes {spec.dtype}, which cannot hold the values given")
    return cast


def _bfloat16(array: Array) -> bytes:
    if array.dtype.name == "bfloat16":
        return np.ascontiguousarray(array).tobytes()
    bits = np.ascontiguousarray(array, dtype="<f4").view(np.uint32)
    # Round to nearest, ties to even; a NaN keeps its sign and stays a NaN.
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16 | 0x40).astype("<u2"), rounded).tobytes()


def _bytes_array(shape: Sequence[int], data: bytes) -> Array:
    items: list[bytes] = []
    offset = 0
    while offset + 4 <= len(data):
        (length,) = struct.unpack_from("<I", data, offset)
        items.append(data[offset + 4 : offset + 4 + length])
        offset += 4 + length
    count = int(np.prod(shape, dtype=np.int64))
    if offset != len(data) or len(items) != count:
        raise DataLossError(f"a BYTES tensor of shape {list(shape)} does not hold {count} elements")
    array = np.empty(count, dtype=object)
    array[:] = items
    return array.reshape(tuple(shape))

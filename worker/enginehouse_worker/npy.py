"""Reads and writes arrays of `.npz` files row by row, without pickles and without holding an array."""

from __future__ import annotations

import errno
import io
import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from enginehouse_worker.backends.base import Array

# What NumPy's parser of headers (a Python literal) raises on bytes that are none, and zipfile on damaged ones.
_HEADER_ERRORS = (
    ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, OverflowError, RecursionError,
    zipfile.BadZipFile, zlib.error, EOFError,
)  # fmt: skip
# NumPy writes no others, and their decompressors know no limit.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class NpyError(ValueError):
    """A member that is not an array, or whose data ends too soon."""


class NpyMember:
    """One array of an `.npz` file: its name, dtype and shape, read from its header alone.

    Raises:
        NpyError: it is not an array, has no dimension 0, holds Python objects, or is in column-major order.
    """

    def __init__(self, path: Path, member: str) -> None:
        self.name = member[: -len(".npy")]
        self._path = path
        self._member = member
        try:
            with zipfile.ZipFile(path) as archive:
                method = archive.getinfo(member).compress_type
                if method not in _METHODS:
                    raise NpyError(f"array {self.name!r} is compressed by method {method}; expected none or deflate")
                with archive.open(member) as file:
                    self.shape, column_major, self.dtype = self._header(file)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise NpyError(f"array {self.name!r} lies at a place that no file has") from None
        except (RuntimeError, NotImplementedError) as error:
            raise NpyError(f"array {self.name!r} cannot be read: {error}") from None
        if self.dtype.hasobject:
            raise NpyError(f"array {self.name!r} holds pickled Python objects; store numbers")
        if not self.shape:
            raise NpyError(f"array {self.name!r} is a single value; dimension 0 must be the samples")
        if min(self.shape) < 0:
            raise NpyError(f"array {self.name!r} has the shape {list(self.shape)}")
        if column_major and len(self.shape) > 1:
            raise NpyError(f"array {self.name!r} is in column-major order; save numpy.ascontiguousarray of it")

    def rows(self, count: int, limit: int) -> Iterator[Array]:
        """Arrays of `count` rows, the last of fewer, up to `limit` rows.

        Raises:
            NpyError: the file ends or is damaged before the last row.
        """
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
            self._header(file)
            for begin in range(0, limit, count):
                rows = min(count, limit - begin)
                try:
                    data = file.read(rows * row_bytes)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise NpyError(f"array {self.name!r} is damaged: {error}") from None
                if len(data) != rows * row_bytes:
                    raise NpyError(f"array {self.name!r} is shorter than its header says")
                yield np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    def _header(self, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
        try:
            version = npy_format.read_magic(file)  # type: ignore[no-untyped-call]
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            return cast("tuple[tuple[int, ...], bool, np.dtype[np.generic]]", read(file))  # type: ignore[no-untyped-call]
        except _HEADER_ERRORS as error:
            raise NpyError(f"{self._member!r} is not a NumPy array: {error}") from None


def write_npz(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of an `.npz` file (uncompressed). Unlike `numpy.savez`, any name is allowed, "file" included."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy_format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


@dataclass(frozen=True)
class Rows:
    """An array that comes in parts along dimension 0, together of `shape`."""

    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    parts: Iterable[Array]


def write_npz_rows(path: Path, arrays: Mapping[str, Rows]) -> None:
    """Write an uncompressed `.npz` whose arrays come in parts; the file appears when it is whole and durable.

    Raises:
        ValueError: parts are together not of the shape that was said.
    """
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_rows(member, name, array)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _write_rows(member: IO[bytes], name: str, array: Rows) -> None:
    dtype: np.dtype[np.generic] = np.dtype(array.dtype)
    header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}  # type: ignore[no-untyped-call]
    npy_format.write_array_header_2_0(member, header)  # type: ignore[no-untyped-call]
    left = math.prod(array.shape) * dtype.itemsize
    for part in array.parts:
        data = np.ascontiguousarray(part, dtype).tobytes()
        left -= len(data)
        member.write(data)
    if left:
        raise ValueError(f"the parts of {name!r} differ by {-left} bytes from its shape {array.shape}")

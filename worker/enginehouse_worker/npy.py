"""Reads an array of an `.npz` file row by row, without unpickling and without holding the array."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.lib import format as npy_format

from enginehouse_worker.backends.base import Array


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
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            self.shape, column_major, self.dtype = self._header(file)
        if self.dtype.hasobject:
            raise NpyError(f"array {self.name!r} holds pickled Python objects; store numbers")
        if not self.shape:
            raise NpyError(f"array {self.name!r} is a single value; dimension 0 must be the samples")
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
        except (ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise NpyError(f"{self._member!r} is not a NumPy array: {error}") from None


def write_npz(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of an `.npz` file (uncompressed). Unlike `numpy.savez`, any name is allowed, "file" included."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                npy_format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)  # type: ignore[no-untyped-call]
    return buffer.getvalue()

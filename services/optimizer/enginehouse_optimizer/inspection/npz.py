"""Looks into an uploaded .npz: headers of its arrays only, whatever its size; nothing in it is executed."""

from __future__ import annotations

import ast
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from enginehouse_optimizer.inspection.archives import PARSER_ERRORS, check_zip_directory
from enginehouse_optimizer.inspection.facts import DatasetFacts
from enginehouse_optimizer.inspection.facts import unusable as _wrong

LABELS = "labels"
_MAX_ARRAYS = 256
_MAX_HEADER_BYTES = 1 << 16
_SUFFIX = ".npy"


@dataclass(frozen=True)
class ArrayHeader:
    """`dtype` is NumPy's description, such as "<f4"."""

    dtype: str
    shape: tuple[int, ...]


def inspect_npz(path: Path) -> DatasetFacts:
    """Count the samples of a dataset.

    Raises:
        InvalidArgumentError: it is no .npz, or one that no stage could use.
    """
    try:
        check_zip_directory(path, _MAX_ARRAYS)
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not 0 < len(names) <= _MAX_ARRAYS:
                raise _wrong(f"it holds {len(names)} files; expected 1 to {_MAX_ARRAYS} arrays")
            headers: dict[str, ArrayHeader] = {}
            for name in names:
                if not name.endswith(_SUFFIX):
                    raise _wrong(
                        f"it holds {name!r}, which is no array; is it an archive of images? Then say so as its format"
                    )
                with archive.open(name) as member:
                    headers[name[: -len(_SUFFIX)]] = read_header(member, name)
    except PARSER_ERRORS as error:
        raise _wrong(f"it is no .npz file ({error}); write it with numpy.savez") from None
    return _facts(headers)


def read_header(stream: IO[bytes], name: str) -> ArrayHeader:
    """The header of a .npy stream.

    Raises:
        InvalidArgumentError: it has none, or one of objects (pickles).
    """
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise _wrong(f"{name!r} is no .npy array")
    short = magic[6] == 1
    length_bytes = stream.read(2 if short else 4)
    length = struct.unpack("<H" if short else "<I", length_bytes)[0] if len(length_bytes) == (2 if short else 4) else 0
    if not 0 < length <= _MAX_HEADER_BYTES:
        raise _wrong(f"{name!r} has a header of {length} bytes; expected 1 to {_MAX_HEADER_BYTES}")
    try:
        value = ast.literal_eval(stream.read(length).decode("latin1" if magic[6] < 3 else "utf-8").strip())
        dtype, shape = value["descr"], value["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise _wrong(f"{name!r} has a header that cannot be read") from None
    if not isinstance(dtype, str) or "O" in dtype:
        raise _wrong(f"{name!r} holds Python objects or records; expected numbers or text")
    if not isinstance(shape, tuple) or not all(isinstance(d, int) and d >= 0 for d in shape):
        raise _wrong(f"{name!r} has the shape {shape!r}")
    return ArrayHeader(dtype, shape)


def _facts(headers: dict[str, ArrayHeader]) -> DatasetFacts:
    inputs = {name: header for name, header in headers.items() if name != LABELS}
    if not inputs:
        raise _wrong(f"it holds no input, only {LABELS!r}")
    for name, header in headers.items():
        if not header.shape:
            raise _wrong(f"{name!r} is a single number; expected dimension 0 to be the samples")
    counts = {name: header.shape[0] for name, header in headers.items()}
    if len(set(counts.values())) != 1:
        raise _wrong(f"its arrays have different numbers of samples: {counts}")
    samples = next(iter(counts.values()))
    if samples == 0:
        raise _wrong("it has no samples")
    labels = headers.get(LABELS)
    if labels is not None:
        flat = len(labels.shape) == 1 or labels.shape[1:] == (1,)
        if labels.dtype.lstrip("<>=|")[:1] not in ("i", "u") or not flat:
            raise _wrong(f"{LABELS!r} is {labels.dtype} {list(labels.shape)}; expected one integer a sample")
    return DatasetFacts(samples, labels is not None)

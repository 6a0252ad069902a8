"""Image files, archives of them and TFRecords, written byte by byte."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from PIL import Image


def encoded(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def flat(value: int | tuple[int, int, int], size: int = 8) -> bytes:
    """A PNG of one colour."""
    return encoded(np.full((size, size, 3), value, np.uint8))


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], compress: bool = False) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(buffer.getvalue()) if compress else buffer.getvalue()


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(records: Iterable[bytes]) -> bytes:
    """A TFRecord file."""
    parts = []
    for data in records:
        length = struct.pack("<Q", len(data))
        parts += [length, struct.pack("<I", masked(length)), data, struct.pack("<I", masked(data))]
    return b"".join(parts)


def example(**features: bytes | int | float) -> bytes:
    """A tf.train.Example in protobuf's wire format; "__" in a name stands for "/"."""
    entries = []
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        elif isinstance(value, float):
            feature = _field(2, _field(1, struct.pack("<f", value)))
        else:
            feature = _field(3, _field(1, _varint(value % 2**64)))
        entries.append(_field(1, _field(1, name.replace("__", "/").encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def signature(directory: Path, shape: Iterable[int], dtype: str = "FP32") -> Path:
    """A directory that says of a model what prepare needs to know."""
    directory.mkdir(exist_ok=True)
    image = {"name": "image", "dtype": dtype, "shape": list(shape)}
    scores = {"name": "scores", "dtype": "FP32", "shape": [-1, 10]}
    (directory / "signature.json").write_text(json.dumps({"inputs": [image], "outputs": [scores], "batched": True}))
    return directory


def uploaded(directory: Path, data: bytes, name: str = "data.bin") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(data)
    return directory


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])

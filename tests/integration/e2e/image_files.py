"""The same labelled pixels as arrays, as a folder of images and as a TFRecord, written byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from model_files import CLASSES, DEVIATION, MEAN, SIZE

Pixels = npt.NDArray[np.uint8]


def pixels(samples: int, seed: int = 0) -> tuple[Pixels, npt.NDArray[np.int64]]:
    """RGB images, channels last, and labels; ordered by class, as the files of a folder a class are."""
    random = np.random.default_rng(seed)
    labels = np.sort(np.arange(samples) % len(CLASSES))
    images = np.array(MEAN) + DEVIATION * random.standard_normal((samples, SIZE, SIZE, 3))
    images[np.arange(samples), :, :, 2 - labels] += 0.7 * DEVIATION
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), labels


def normalized(images: Pixels) -> npt.NDArray[np.float32]:
    """What PREPROCESSING makes of pixels, channels first."""
    values: npt.NDArray[Any] = (images.astype(np.float32) - np.array(MEAN, np.float32)) / np.float32(DEVIATION)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def write_folder(path: Path, images: Pixels, labels: npt.NDArray[np.int64]) -> Path:
    """One folder a class, with PNG files."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = path / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.png").write_bytes(png(image))
    return path


def write_tfrecord(path: Path, images: Pixels, labels: npt.NDArray[np.int64]) -> Path:
    """tf.train.Example records as ImageNet's have them: a label counts from 1."""
    with path.open("wb") as file:
        for image, label in zip(images, labels, strict=True):
            features = _entry(b"image/encoded", _field(1, _field(1, png(image))))
            features += _entry(b"image/class/label", _field(3, _field(1, bytes([int(label) + 1]))))
            data = _field(1, features)
            length = struct.pack("<Q", len(data))
            for part in (length, data):
                file.write(part + struct.pack("<I", _masked(part)))
    return path


def png(image: Pixels) -> bytes:
    """An RGB image as PNG."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _entry(name: bytes, feature: bytes) -> bytes:
    return _field(1, _field(1, name) + _field(2, feature))


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + bytes(_varint(len(data))) + data


def _varint(value: int) -> Iterator[int]:
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def _masked(data: bytes) -> int:
    """TFRecord's CRC32C, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _row(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_row(value) for value in range(256)]

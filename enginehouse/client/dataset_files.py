"""What a dataset's file or folder is, and a folder of images as one file."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enginehouse.client.values.convert import enum_value
from enginehouse.datasets.image_listing import ListingError, labels_file, list_images
from enginehouse.errors import InvalidArgumentError
from enginehouse.v1 import models_pb2 as pb

_SUFFIXES: Mapping[str, pb.DatasetFormat.ValueType] = {
    ".npz": pb.DATASET_FORMAT_NPZ,
    ".zip": pb.DATASET_FORMAT_IMAGES,
    ".tar": pb.DATASET_FORMAT_IMAGES,
    ".tar.gz": pb.DATASET_FORMAT_IMAGES,
    ".tgz": pb.DATASET_FORMAT_IMAGES,
    ".tfrecord": pb.DATASET_FORMAT_TFRECORD,
    ".tfrecords": pb.DATASET_FORMAT_TFRECORD,
    ".tfrecord.gz": pb.DATASET_FORMAT_TFRECORD,
    ".tfrecords.gz": pb.DATASET_FORMAT_TFRECORD,
}
# How TensorFlow's tools name the parts of a TFRecord.
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_KINDS = f"a file that ends in {', '.join(_SUFFIXES)}, or a folder of images"


@dataclass(frozen=True)
class DatasetFile:
    """A dataset on its way up. `stem` is its name without ending; `images` are a folder's files to pack, in order."""

    path: Path
    format: pb.DatasetFormat.ValueType
    stem: str
    images: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """Of what is uploaded."""
        return f"{self.path.resolve().name}.zip" if self.images else self.path.name


def dataset_file(path: Path, format_name: str | None = None) -> DatasetFile:
    """What a path is. A folder's images and their labels are checked by name, before anything is packed.

    Args:
        format_name: "npz", "images" or "tfrecord"; found out by the name when None.

    Raises:
        InvalidArgumentError: there is no such file, we do not know it, or a folder's images or labels are wrong.
    """
    stated: pb.DatasetFormat.ValueType | None = None
    if format_name is not None:
        stated = enum_value(pb.DatasetFormat, format_name, "DATASET_FORMAT_", "dataset format")
    if not path.exists():
        raise InvalidArgumentError(f"there is no {path}: expected {_KINDS}")
    if path.is_dir():
        if stated not in (None, pb.DATASET_FORMAT_IMAGES):
            raise InvalidArgumentError(
                f"{path} is a folder, which can be a dataset of images only; join a TFRecord's parts with `cat`"
            )
        return DatasetFile(path, pb.DATASET_FORMAT_IMAGES, path.resolve().name, _images(path))
    name = path.name.lower()
    suffix = max((s for s in _SUFFIXES if name.endswith(s)), key=len, default="")
    found = stated or _SUFFIXES.get(suffix) or (pb.DATASET_FORMAT_TFRECORD if _SHARD.search(name) else None)
    if found is None:
        raise InvalidArgumentError(f"unknown dataset {path.name!r}: expected {_KINDS}, or its format said")
    return DatasetFile(path, found, path.name[: len(path.name) - len(suffix)] if suffix else path.stem)


def is_dataset_file(text: str) -> bool:
    """Whether a text names a file or folder to upload, rather than being a dataset's id.

    A folder is named with a slash ("./photos", "photos/"): a bare name is an id.
    """
    name = text.lower()
    return ("/" in text and Path(text).is_dir()) or name.endswith(tuple(_SUFFIXES)) or bool(_SHARD.search(name))


def pack_images(dataset: DatasetFile, archive: Path) -> None:
    """A folder's images as an uncompressed zip whose bytes depend on their names and content alone, so that the same
    images have the same digest.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for name in dataset.images:
            # Its time is 1980-01-01.
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100644 << 16
            with (dataset.path / name).open("rb") as source, packed.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _images(folder: Path) -> tuple[str, ...]:
    """The names of a folder's images and, where there is one, of its labels.csv."""
    names = [str(path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*")) if path.is_file()]
    try:
        for name in names:
            name.encode()
        labels = labels_file(names)
        text = (folder / labels).read_bytes() if labels is not None else None
        listing = list_images(names, labels, text)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{folder}: {error.object!r} is a name that is no UTF-8: rename it") from None
    except ListingError as error:
        raise InvalidArgumentError(f"{folder} is no dataset of images: {error}") from None
    return (*((labels,) if labels is not None else ()), *listing.images)

"""Uploaded image files and TFRecords as numbered samples: where each encoded image is, and its label."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from enginehouse_worker.data.examples import ExampleReader
from enginehouse_worker.data.image_listing import ListingError, labels_file, list_images
from enginehouse_worker.data.members import decompressed, open_members
from enginehouse_worker.data.tfrecord import read_records
from enginehouse_worker.errors import WorkerError

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class EncodedImages:
    """Samples 0 to `count` - 1: `labels` has a class index each, or is None; `read` gives a sample's name (for
    messages) and its encoded image.
    """

    count: int
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    read: Callable[[int], tuple[str, bytes]]


@contextmanager
def open_images(file: Path, scratch: Path) -> Iterator[EncodedImages]:
    """An archive of image files, in the order of their names.

    Raises:
        WorkerError: see `open_members`; INVALID_ARGUMENT, too, naming a file that is no image or a label that is wrong.
    """
    with open_members(file, scratch) as members:
        try:
            labels_name = labels_file(members.names)
            text = members.read(labels_name) if labels_name is not None else None
            listing = list_images(members.names, labels_name, text)
        except ListingError as error:
            raise WorkerError("INVALID_ARGUMENT", f"the dataset is not usable: {error}") from None

        def read(number: int) -> tuple[str, bytes]:
            name = listing.images[number]
            return name, members.read(name)

        yield EncodedImages(len(listing.images), listing.labels, listing.classes, read)


@contextmanager
def open_tfrecord(file: Path, scratch: Path, reader: ExampleReader) -> Iterator[EncodedImages]:
    """A TFRecord file (plain or gzip) of examples, in its order. It is read once to check it and to know the labels.

    Raises:
        WorkerError: INVALID_ARGUMENT naming the record that is wrong; RESOURCE_EXHAUSTED for a bomb.
    """
    with file.open("rb") as opened:
        packed = opened.read(len(_GZIP)) == _GZIP
    plain = decompressed(file, scratch) if packed else file
    with plain.open("rb") as opened:
        # 20 bytes a record.
        offsets, sizes, labels = array("Q"), array("I"), array("q")
        for record in read_records(opened):
            _, label = reader.read(record.data, record.number)
            if (label is None) != (len(labels) == 0) and record.number > 0:
                missing = record.number if label is None else 0
                raise WorkerError(
                    "INVALID_ARGUMENT",
                    f"record {missing} of the TFRecord file has no feature {reader.label!r}, but others have: expected "
                    "a label in all records or in none",
                )
            offsets.append(record.offset)
            sizes.append(len(record.data))
            if label is not None:
                labels.append(label)
        if not offsets:
            raise WorkerError("INVALID_ARGUMENT", "the TFRecord file has no records")

        def read(number: int) -> tuple[str, bytes]:
            opened.seek(offsets[number])
            image, _ = reader.read(opened.read(sizes[number]), number)
            return f"record {number}", image

        yield EncodedImages(len(offsets), tuple(labels) if labels else None, (), read)

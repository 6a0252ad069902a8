"""Looks into an uploaded archive of image files: their names, and labels.csv; no image is decoded."""

from __future__ import annotations

from pathlib import Path

from enginehouse.datasets.image_listing import LABELS_FILE, ListingError, labels_file, list_images
from enginehouse_optimizer.inspection.archives import list_archive
from enginehouse_optimizer.inspection.facts import DatasetFacts, unusable

_MAX_CLASSES = 10_000
_MAX_CLASS_NAME = 255


def inspect_images(path: Path) -> DatasetFacts:
    """Count the images of an archive, and know their classes.

    Raises:
        InvalidArgumentError: it is no archive of images, or its labels do not fit them.
    """
    archive = list_archive(path, LABELS_FILE)
    try:
        labels_name = labels_file(archive.names)
        text = archive.contents.get(labels_name) if labels_name is not None else None
        listing = list_images(archive.names, labels_name, text)
    except ListingError as error:
        raise unusable(str(error)) from None
    if len(listing.classes) > _MAX_CLASSES or any(len(name) > _MAX_CLASS_NAME for name in listing.classes):
        raise unusable(
            f"it has {len(listing.classes)} folders of classes; expected at most {_MAX_CLASSES}, with names of at most "
            f"{_MAX_CLASS_NAME} characters: say the classes in {LABELS_FILE}"
        )
    return DatasetFacts(len(listing.images), listing.labels is not None, listing.classes)

"""Which files of an archive are images, and their labels: the rule that `Dataset` in models.proto states.

`worker/enginehouse_worker/data/image_listing.py` has the same code, because a worker imports nothing of `enginehouse`;
a test holds the two together.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
LABELS_FILE = "labels.csv"
_MAX_LABEL = 2**31 - 1
_MAX_DIGITS = 18
# Files that accompany images.
_NOTES = (".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".html", ".htm", ".pdf")
_NOTE_NAMES = ("readme", "license", "licence", "copying", "notice", "authors", "changelog", "thumbs.db", "desktop.ini")


class ListingError(ValueError):
    """Files that are no images, or labels that do not fit them."""


@dataclass(frozen=True)
class Listing:
    """Images in the order of their names; a class index each, or None; the classes' names, where folders name them."""

    images: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]


def is_ignored(name: str) -> bool:
    """Whether a file merely accompanies images: notes, hidden files and what file managers leave behind."""
    path = PurePosixPath(name)
    return _is_hidden(name) or path.suffix.lower() in _NOTES or path.name.lower() in _NOTE_NAMES


def image_names(names: Iterable[str]) -> tuple[str, ...]:
    """The images among files, sorted.

    Raises:
        ListingError: there are none, or a file is neither an image nor a note.
    """
    images = []
    for name in names:
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_ignored(name):
            images.append(name)
        elif not is_ignored(name):
            raise ListingError(f"{name!r} is no image; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    if not images:
        raise ListingError(f"it holds no images; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return tuple(sorted(images))


def labels_file(names: Iterable[str]) -> str | None:
    """The labels.csv among files, in whatever folder.

    Raises:
        ListingError: there is more than one.
    """
    found = [n for n in names if PurePosixPath(n).name == LABELS_FILE and not _is_hidden(n)]
    if len(found) > 1:
        raise ListingError(f"it holds more than one {LABELS_FILE}: {', '.join(sorted(found)[:3])}; expected one")
    return found[0] if found else None


def list_images(names: Sequence[str], labels_name: str | None, labels_text: bytes | None) -> Listing:
    """The images among an archive's files, with labels from its labels.csv or, where there is none, its folders.

    Raises:
        ListingError: a file is no image, or the labels do not fit the images.
    """
    images = image_names(names)
    if labels_name is not None and labels_text is not None:
        return Listing(images, _labels_of_file(images, labels_name, labels_text), ())
    return _by_folder(images)


def _by_folder(images: tuple[str, ...]) -> Listing:
    paths = [PurePosixPath(name).parts for name in images]
    # Folders that hold everything are no classes.
    common = 0
    while all(len(parts) > common + 1 and parts[common] == paths[0][common] for parts in paths):
        common += 1
    inner = [parts[common:] for parts in paths]
    if all(len(parts) == 1 for parts in inner):
        return Listing(images, None, ())
    for name, parts in zip(images, inner, strict=True):
        if len(parts) != 2:
            where = "outside the classes' folders" if len(parts) == 1 else "in a folder within a class's folder"
            raise ListingError(
                f"{name!r} lies {where}; expected one folder a class with its images in it, or all images in one "
                f"folder, or a file {LABELS_FILE}"
            )
    found = {parts[0] for parts in inner}
    classes = sorted(found, key=int) if all(map(_is_number, found)) else sorted(found)
    index = {name: place for place, name in enumerate(classes)}
    return Listing(images, tuple(index[parts[0]] for parts in inner), tuple(classes))


def _labels_of_file(images: tuple[str, ...], labels_name: str, text: bytes) -> tuple[int, ...]:
    folder = PurePosixPath(labels_name).parent
    given: dict[str, int] = {}
    try:
        rows = list(csv.reader(text.decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ListingError(f"{labels_name} cannot be read as UTF-8 CSV: {error}") from None
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        value = row[1].strip() if len(row) == 2 else ""
        if not _is_number(value) or int(value) > _MAX_LABEL:
            if number == 1 and len(row) == 2:
                # A header.
                continue
            raise ListingError(
                f"line {number} of {labels_name} is {','.join(row)[:80]!r}; expected a path, a comma and a class index"
            )
        path = str(folder / row[0].strip())
        if given.setdefault(path, int(value)) != int(value):
            raise ListingError(f"{labels_name} has two class indices for {path!r}")
    unlabelled = [name for name in images if name not in given]
    absent = sorted(given.keys() - set(images))
    if unlabelled:
        raise ListingError(f"{labels_name} lacks {len(unlabelled)} images, among them {unlabelled[0]!r}")
    if absent:
        raise ListingError(f"{labels_name} names {len(absent)} images that are not there, among them {absent[0]!r}")
    return tuple(given[name] for name in images)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS

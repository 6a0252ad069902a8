"""A directory stored as blobs: a list of files, each with its path, digest and size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from enginehouse.artifacts.digest import canonical_json, digest_bytes, parse_digest
from enginehouse.artifacts.files import storage_error
from enginehouse.artifacts.store import BlobStore
from enginehouse.errors import InvalidArgumentError


@dataclass(frozen=True, order=True)
class TreeEntry:
    """One file. `path` is relative, with "/" between parts; `size` is in bytes."""

    path: str
    digest: str
    size: int


@dataclass(frozen=True)
class Tree:
    """The files of a directory, sorted by path. Empty directories are not kept.

    Raises:
        InvalidArgumentError: a path is absolute, leaves the directory, comes twice or is inside another file.
    """

    entries: tuple[TreeEntry, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(sorted(self.entries)))
        seen: set[str] = set()
        for entry in self.entries:
            parts = check_path(entry.path).parts
            parse_digest(entry.digest)
            if entry.size < 0:
                raise InvalidArgumentError(f"{entry.path!r} has {entry.size} bytes: expected at least 0")
            if entry.path in seen:
                raise InvalidArgumentError(f"{entry.path!r} comes twice in a tree")
            if any("/".join(parts[:depth]) in seen for depth in range(1, len(parts))):
                raise InvalidArgumentError(f"{entry.path!r} is inside another file of the tree")
            seen.add(entry.path)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    def find(self, path: str) -> TreeEntry | None:
        """The file of that path, if there is one."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def without(self, *paths: str) -> Tree:
        """The same tree less some files."""
        return Tree(tuple(entry for entry in self.entries if entry.path not in paths))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"path": entry.path, "digest": entry.digest, "size": entry.size} for entry in self.entries]

    @classmethod
    def from_json(cls, value: Any) -> Tree:
        """Raises InvalidArgumentError when `value` is not a list of {path, digest, size}."""
        try:
            return cls(tuple(TreeEntry(str(item["path"]), str(item["digest"]), int(item["size"])) for item in value))
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidArgumentError(f"not a tree: expected a list of {{path, digest, size}} ({error!r})") from error

    @property
    def digest(self) -> str:
        """Digest of its canonical JSON."""
        return digest_bytes(canonical_json(self.to_json()).encode())


def check_path(path: str) -> PurePosixPath:
    """A relative path that stays inside its directory.

    Raises:
        InvalidArgumentError: it is anything else (absolute, "..", ".", empty parts, NUL, a backslash).
    """
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise InvalidArgumentError(
            f'path {path!r} is not valid in a tree: expected relative parts joined by "/", without "." or ".."'
        )
    return PurePosixPath(path)


def store_tree(store: BlobStore, directory: Path, *, move: bool = False) -> Tree:
    """Store every file of a directory.

    Args:
        move: take the files themselves, as `BlobStore.put_file` does; the directory must not be used afterwards.

    Raises:
        InvalidArgumentError: it holds a link or a special file, which a tree cannot.
        ResourceExhaustedError: the disk is full.
    """
    entries: list[TreeEntry] = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidArgumentError(f"{name!r} is a link or a special file: a tree holds plain files only")
        if path.is_file():
            size = path.stat().st_size
            entries.append(TreeEntry(name, store.put_file(path, move=move), size))
    return Tree(tuple(entries))


def materialize(
    store: BlobStore, tree: Tree, target: Path, *, copy: bool = False, before_each: Callable[[], None] | None = None
) -> None:
    """Write a tree's files into a directory, which is made; hard links of the blobs where the file system allows.

    Args:
        copy: always copy, for a reader that may write into its files.
        before_each: called before each file; may raise to stop.

    Raises:
        NotFoundError, DataLossError: a blob is gone or damaged.
        ResourceExhaustedError: the disk is full.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        for entry in tree.entries:
            if before_each is not None:
                before_each()
            source = store.path(entry.digest)
            path = target / check_path(entry.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            _place(source, path, copy)
    except OSError as error:
        raise storage_error(error, f"writing {target}") from error


def _place(source: Path, path: Path, copy: bool) -> None:
    if not copy:
        try:
            os.link(source, path)
            return
        except FileExistsError:
            raise
        except OSError:
            pass  # another file system, or one without hard links
    with path.open("xb") as out, source.open("rb") as stream:
        shutil.copyfileobj(stream, out, 1 << 20)

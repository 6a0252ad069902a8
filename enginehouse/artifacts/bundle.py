"""An engine as one file: a plain tar of its manifest and the blobs that belong to it.

`manifest.json` comes first, then `manifest.sha256` (a line as `sha256sum` writes it: the manifest names the digest of
everything else, so that this makes every byte checked), then each blob once as `sha256/{64 hexadecimal digits}`, in the
order of their digests, then two zero blocks. Times and owners are zero, so that one engine is always the same bytes.
`tar -tf` lists it.

The reader takes nothing else: no links, no folders, no other names, no extended headers. It reads headers itself,
because `tarfile` would follow extended headers of any size; nothing but the manifest is ever held in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from enginehouse.artifacts.digest import PREFIX, digest_bytes, parse_digest
from enginehouse.artifacts.manifest import MAX_MANIFEST_BYTES, EngineManifest, manifest_blobs
from enginehouse.errors import DataLossError, InvalidArgumentError

MANIFEST = "manifest.json"
CHECKSUM = "manifest.sha256"
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
# Other tools pad an archive to a multiple of their record size.
_MAX_PADDING = 1 << 20
_CHUNK = 1 << 20
_NAME = re.compile(r"sha256/([0-9a-f]{64})")


@dataclass(frozen=True)
class Part:
    """A blob inside a file: `offset` and `size` in bytes."""

    digest: str
    offset: int
    size: int


@dataclass(frozen=True)
class Bundle:
    """What a checked bundle holds. `parts` are its blobs, the manifest's the last."""

    manifest: EngineManifest
    manifest_digest: str
    parts: tuple[Part, ...]


class BundleWriter:
    """Writes a bundle member by member; a member's bytes are checked against its digest as they pass."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def manifest(self, data: bytes) -> None:
        """The first members."""
        for name, content in ((MANIFEST, data), (CHECKSUM, checksum_line(digest_bytes(data)))):
            self._stream.write(_header(name, len(content)) + content + _padding(len(content)))

    def begin(self, digest: str, size: int) -> None:
        """Begin a blob's member of `size` bytes."""
        self._digest, self._size, self._done = digest, size, 0
        self._hash = hashlib.sha256()
        self._stream.write(_header(f"sha256/{parse_digest(digest)}", size))

    def write(self, data: bytes) -> None:
        """More of the member's bytes."""
        self._hash.update(data)
        self._done += len(data)
        self._stream.write(data)

    def end(self) -> None:
        """End the member.

        Raises:
            DataLossError: its bytes are not what its digest says.
        """
        if self._done != self._size or PREFIX + self._hash.hexdigest() != self._digest:
            raise DataLossError(f"the bytes that came for {self._digest} are others: the stored blob is damaged")
        self._stream.write(_padding(self._size))

    def finish(self) -> None:
        """The archive's end."""
        self._stream.write(_END)


def ordered(blobs: Iterable[str]) -> list[str]:
    """Digests in a bundle's order."""
    return sorted(blobs)


def checksum_line(digest: str) -> bytes:
    """What CHECKSUM holds for a manifest of that digest."""
    return f"{parse_digest(digest)}  {MANIFEST}\n".encode()


def read_bundle(path: Path) -> Bundle:
    """Check a bundle, every byte of it, and say where its blobs are. Memory does not grow with its size.

    Raises:
        InvalidArgumentError: it is no bundle, or it holds what no bundle does.
        DataLossError: it is cut off, or bytes of it were changed.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        try:
            return _read(stream, os.fstat(stream.fileno()).st_size)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path.name} is no engine bundle: {error.message}") from None
        except DataLossError as error:
            raise DataLossError(f"{path.name} is damaged: {error.message}; export the engine again") from None


def _read(stream: BinaryIO, total: int) -> Bundle:
    first = _next(stream, total)
    if first is None or first[0] != MANIFEST:
        raise InvalidArgumentError(f"expected {MANIFEST} first, found {first[0] if first else 'nothing'!r}")
    size = first[1]
    if size > MAX_MANIFEST_BYTES:
        raise InvalidArgumentError(f"its manifest has {size} bytes: expected at most {MAX_MANIFEST_BYTES}")
    offset = stream.tell()
    data = stream.read(size)
    _skip_padding(stream, size)
    manifest_digest = digest_bytes(data)
    _check_manifest(stream, total, checksum_line(manifest_digest))
    manifest = EngineManifest.from_json(data)
    wanted = manifest_blobs(manifest)
    parts: dict[str, Part] = {}
    while (member := _next(stream, total)) is not None:
        part = _part(stream, *member, wanted)
        if part.digest in parts:
            raise InvalidArgumentError(f"{part.digest} comes twice")
        parts[part.digest] = part
    _check_end(stream)
    if missing := [digest for digest in wanted if digest not in parts]:
        raise DataLossError(f"{len(missing)} of {len(wanted)} blobs are missing, {missing[0]} among them")
    # The manifest goes last: whoever has it has the rest.
    own = () if manifest_digest in parts else (Part(manifest_digest, offset, size),)
    return Bundle(manifest, manifest_digest, (*parts.values(), *own))


def _check_manifest(stream: BinaryIO, total: int, wanted: bytes) -> None:
    member = _next(stream, total)
    if member is None or member[0] != CHECKSUM:
        raise InvalidArgumentError(
            f"expected {CHECKSUM} after {MANIFEST}, found {member[0] if member else 'nothing'!r}"
        )
    if member[1] != len(wanted) or stream.read(len(wanted)) != wanted:
        raise DataLossError(f"{MANIFEST} does not have the digest that {CHECKSUM} says")
    _skip_padding(stream, len(wanted))


def _part(stream: BinaryIO, name: str, size: int, wanted: dict[str, int | None]) -> Part:
    match = _NAME.fullmatch(name)
    digest = PREFIX + match.group(1) if match is not None else ""
    if digest not in wanted:
        raise InvalidArgumentError(f"it holds {name!r}, which its manifest does not name")
    if wanted[digest] not in (None, size):
        raise DataLossError(f"{name} has {size} bytes, the manifest says {wanted[digest]}")
    offset, left, state = stream.tell(), size, hashlib.sha256()
    while left:
        chunk = stream.read(min(left, _CHUNK))
        if not chunk:
            raise DataLossError(f"it ends inside {name}")
        state.update(chunk)
        left -= len(chunk)
    if PREFIX + state.hexdigest() != digest:
        raise DataLossError(f"the bytes of {name} have another digest")
    _skip_padding(stream, size)
    return Part(digest, offset, size)


def _next(stream: BinaryIO, total: int) -> tuple[str, int] | None:
    """Name and size of the next member, whose bytes are all there; None at the archive's end."""
    at = stream.tell()
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise (
            DataLossError(f"it ends at byte {at}, before the archive does")
            if at
            else InvalidArgumentError(f"it has {len(block)} bytes")
        )
    if not any(block):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise (DataLossError if at else InvalidArgumentError)(f"no tar header at byte {at} ({error})") from None
    if info.type != tarfile.REGTYPE:
        raise InvalidArgumentError(f"{info.name!r} is no plain file: expected files only, without links or folders")
    if info.size < 0 or info.size > total - stream.tell():
        raise DataLossError(f"{info.name!r} says that it has {info.size} bytes, {total - stream.tell()} are left")
    return info.name, info.size


def _check_end(stream: BinaryIO) -> None:
    """The rest of the archive is a second zero block and padding."""
    rest = stream.read(_MAX_PADDING + 1)
    if len(rest) < _BLOCK or len(rest) > _MAX_PADDING or any(rest):
        raise DataLossError("it does not end as an archive does")


def _skip_padding(stream: BinaryIO, size: int) -> None:
    wanted = _padding(size)
    if stream.read(len(wanted)) != wanted:
        raise DataLossError(f"it is changed or cut off at byte {stream.tell()}")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    # GNU's format has no limit of 8 GiB, and for short names no further headers.
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)

"""Lists an archive that a stranger made, without unpacking it: a .zip, .tar or .tar.gz, known by its first bytes."""

from __future__ import annotations

import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from enginehouse_optimizer.inspection.facts import unusable

MAX_FILES = 500_000
MAX_FILE_BYTES = 256 << 20
MAX_BYTES = 256 << 30
# Deflate reaches 1,030:1; images are compressed already.
MAX_RATIO = 200
_RATIO_APPLIES_FROM = 64 << 20
# Bytes of headers that may come before one member of a tar: tarfile reads them into memory, whatever they claim.
_MAX_HEADER = 1 << 20
# Bytes of a zip's directory per member, on average: zipfile reads it into memory.
_MEAN_ENTRY = 512
PARSER_ERRORS = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, struct.error,
    RuntimeError, NotImplementedError, OverflowError, RecursionError, IndexError, OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """An archive's files by name, and the content of the one that was asked for, where there is one."""

    names: tuple[str, ...]
    contents: dict[str, bytes]


def list_archive(path: Path, wanted: str) -> Archive:
    """List an archive; read the files of the name `wanted`, in whatever folder.

    Raises:
        InvalidArgumentError: it is no archive, damaged, too large, or has a member that is a link, a device, encrypted,
            there twice, or named as if to leave its directory.
    """
    with path.open("rb") as file:
        head = file.read(512)
    found = _Found(path.stat().st_size, wanted)
    try:
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            _list_zip(path, found)
        elif head[:2] == b"\x1f\x8b":
            with gzip.open(path, "rb") as unpacked:
                _list_tar(cast("IO[bytes]", unpacked), found, packed=True)
        elif head[257:262] == b"ustar":
            with path.open("rb") as file:
                _list_tar(file, found, packed=False)
        else:
            raise unusable("it is no archive; expected a .zip, .tar or .tar.gz of image files")
    except PARSER_ERRORS as error:
        raise unusable(f"it is damaged or cut short ({error})") from None
    return Archive(tuple(found.names), found.contents)


def check_zip_directory(path: Path, max_files: int) -> None:
    """Refuse a zip whose directory would fill the memory; its size is what the end record says and zipfile believes.

    Raises:
        InvalidArgumentError: it is larger than `max_files` can need.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    said = struct.unpack_from("<I", tail, end + 12)[0] if 0 <= end <= len(tail) - 22 else 0
    # 0xFFFFFFFF: the size is in a ZIP64 record, and at most the file's.
    if min(said, size) > max_files * _MEAN_ENTRY:
        raise unusable(f"it has more than {max_files} files, or names too long")


def unpacked_limit(size: int) -> int:
    """How many bytes a compressed file of that size may unpack to."""
    return min(MAX_BYTES, max(_RATIO_APPLIES_FROM, MAX_RATIO * size))


class _Found:
    """Files found so far, each checked."""

    def __init__(self, size: int, wanted: str) -> None:
        self.size = size
        self.names: dict[str, None] = {}
        self.contents: dict[str, bytes] = {}
        self._wanted = wanted
        self._bytes = 0

    def add(self, name: str, size: int) -> bool:
        """Note a file; whether its content is wanted."""
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
            raise unusable(f"its member {name[:200]!r} would leave its directory; names must be relative, without '..'")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in name):
            raise unusable(f"its member {name[:200]!r} has a name that is no UTF-8")
        if name in self.names:
            raise unusable(f"its member {name[:200]!r} is there twice")
        if len(self.names) >= MAX_FILES:
            raise unusable(f"it has more than {MAX_FILES} files")
        self._bytes += size
        if size > MAX_FILE_BYTES or self._bytes > MAX_BYTES:
            raise unusable(
                f"its member {name[:200]!r} has {size} bytes, all until there {self._bytes}; expected at most "
                f"{MAX_FILE_BYTES} a file and {MAX_BYTES} in all"
            )
        self.names[name] = None
        return path.name == self._wanted


def _list_zip(path: Path, found: _Found) -> None:
    check_zip_directory(path, MAX_FILES)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename
            if info.is_dir():
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise unusable(f"its member {name[:200]!r} is a link or a device; only plain files are taken")
            if info.flag_bits & 0x1:
                raise unusable(f"its member {name[:200]!r} is encrypted; upload it without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # The others' decompressors know no limit.
                raise unusable(
                    f"its member {name[:200]!r} is compressed by method {info.compress_type}; expected deflate"
                )
            if found.add(name, info.file_size):
                with archive.open(info) as member:
                    found.contents[name] = member.read(MAX_FILE_BYTES)


def _list_tar(file: IO[bytes], found: _Found, *, packed: bool) -> None:
    headers = _Headers(file, unpacked_limit(found.size) if packed else found.size)
    archive: Any
    with tarfile.open(fileobj=cast(Any, headers), mode="r:") as archive:
        while True:
            headers.left = _MAX_HEADER
            member = archive.next()
            # tarfile remembers every member.
            archive.members = []
            if member is None:
                # tarfile takes a header that is cut short or damaged for the end, unless it is the first.
                headers.seek(archive.offset)
                if headers.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    raise unusable("it is damaged or cut short: it has no end")
                break
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise unusable(
                    f"its member {member.name[:200]!r} is a link, device or sparse file; only plain files are taken"
                )
            if found.add(member.name, member.size):
                place = headers.tell()
                headers.seek(member.offset_data)
                headers.left = member.size
                found.contents[member.name] = headers.read(member.size)
                headers.seek(place)


class _Headers:
    """A tar's bytes, of which only so many may be read before the next member, and none beyond `end`."""

    def __init__(self, file: IO[bytes], end: int) -> None:
        self._file = file
        self._end = end
        self.left = _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise unusable(f"a member's header is larger than {_MAX_HEADER} bytes")
        self.left -= size
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > self._end:
            raise unusable(f"it is cut short, or unpacks to more than {self._end} bytes")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

"""The files in an archive that a stranger made, read one at a time where they lie: nothing is unpacked.

Of a .tar.gz and a compressed TFRecord a plain copy is made first, because samples are read in an order of their own.
"""

from __future__ import annotations

import errno
import gzip
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from enginehouse_worker.archives import archive_kind
from enginehouse_worker.errors import WorkerError

MAX_FILES = 500_000
# Of one file; larger ones are no images.
MAX_FILE_BYTES = 256 << 20
MAX_BYTES = 256 << 30
# Deflate reaches 1,030:1; images are compressed already.
MAX_RATIO = 200
_RATIO_APPLIES_FROM = 64 << 20
_CHUNK = 1 << 20
# Bytes of headers that may come before one member of a tar: tarfile reads them into memory, whatever they claim.
_MAX_HEADER = 1 << 20
# Bytes of a zip's directory per member, on average: zipfile reads it into memory.
_MEAN_ENTRY = 512
_PARSER_ERRORS = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, struct.error,
    RuntimeError, NotImplementedError, OverflowError, RecursionError, IndexError,
)  # fmt: skip


@dataclass(frozen=True)
class Members:
    """An archive's files, in its order, and how to read one by its name.

    `read` raises WorkerError INVALID_ARGUMENT when the file is damaged or larger than an image may be.
    """

    names: tuple[str, ...]
    read: Callable[[str], bytes]


@contextmanager
def open_members(archive: Path, scratch: Path) -> Iterator[Members]:
    """Open a .zip, .tar or .tar.gz, known by its content; `scratch` is a directory for a plain copy.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is no archive, damaged, or has a member that is a link, a device,
            encrypted, there twice, or named as if to leave its directory; RESOURCE_EXHAUSTED when it is larger than the
            limits.
    """
    kind = archive_kind(archive)
    if kind is None:
        raise _wrong("it is no archive; expected a .zip, .tar or .tar.gz of image files")
    with ExitStack() as opened:
        # Only what the archive does is its fault, not what happens while the caller has it open.
        try:
            if kind == "zip":
                _check_directory(archive)
                members = _zip_members(opened.enter_context(zipfile.ZipFile(archive)))
            else:
                plain = decompressed(archive, scratch) if kind == "tar.gz" else archive
                members = _tar_members(opened.enter_context(plain.open("rb")))
        except _PARSER_ERRORS as error:
            raise _wrong(f"it is damaged or cut short ({error})") from None
        except OSError as error:
            _raise_unless_misplaced(error)
            raise _wrong(f"it is damaged or cut short ({error})") from None
        yield members


def decompressed(path: Path, scratch: Path) -> Path:
    """A plain copy of a gzip file.

    Raises:
        WorkerError: INVALID_ARGUMENT when it is damaged, RESOURCE_EXHAUSTED when it is a bomb.
    """
    copy = scratch / "decompressed"
    allowed = min(MAX_BYTES, max(_RATIO_APPLIES_FROM, MAX_RATIO * path.stat().st_size))
    done = 0
    try:
        with gzip.open(path, "rb") as source, copy.open("wb") as target:
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                if done > allowed:
                    raise _too_much(f"it unpacks to more than {allowed} bytes, as files made to do harm do")
                target.write(chunk)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _wrong(f"it is damaged or cut short ({error})") from None
    return copy


def _zip_members(archive: zipfile.ZipFile) -> Members:
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.is_dir():
            continue
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _wrong(f"its member {info.filename!r} is a link or a device; only plain files are taken")
        if info.flag_bits & 0x1:
            raise _wrong(f"its member {info.filename!r} is encrypted; upload it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # The others' decompressors know no limit.
            raise _wrong(f"its member {info.filename!r} is compressed by method {info.compress_type}; expected deflate")
        _add(found, info.filename, info.file_size, info)

    def read(name: str) -> bytes:
        try:
            with archive.open(found[name]) as file:
                return file.read(MAX_FILE_BYTES)
        except _PARSER_ERRORS as error:
            raise _wrong(f"its member {name!r} is damaged ({error})") from None
        except OSError as error:
            _raise_unless_misplaced(error)
            raise _wrong(f"its member {name!r} is damaged ({error})") from None

    return Members(tuple(found), read)


def _tar_members(file: IO[bytes]) -> Members:
    found: dict[str, tuple[int, int]] = {}
    headers = _Headers(file)
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
                    raise _wrong("it is damaged or cut short: it has no end")
                break
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise _wrong(f"its member {member.name!r} is a link, device or sparse file; only plain files are taken")
            _add(found, member.name, member.size, (member.offset_data, member.size))

    def read(name: str) -> bytes:
        offset, size = found[name]
        file.seek(offset)
        data = file.read(size)
        if len(data) < size:
            raise _wrong(f"its member {name!r} is cut short")
        return data

    return Members(tuple(found), read)


def _raise_unless_misplaced(error: OSError) -> None:
    """Only a member that claims to lie at a place that no file has is the archive's fault."""
    if error.errno != errno.EINVAL:
        raise error


def _add(found: dict[str, Any], name: str, size: int, place: Any) -> None:
    """Note a member, unless its name or size is one that no image has."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise _wrong(f"its member {name[:200]!r} would leave its directory; names must be relative, without '..'")
    if any(0xD800 <= ord(c) <= 0xDFFF for c in name):
        raise _wrong(f"its member {name[:200]!r} has a name that is no UTF-8")
    if name in found:
        raise _wrong(f"its member {name!r} is there twice")
    if size > MAX_FILE_BYTES:
        raise _too_much(f"its member {name!r} has {size} bytes; expected images of at most {MAX_FILE_BYTES}")
    if len(found) >= MAX_FILES:
        raise _too_much(f"it has more than {MAX_FILES} files")
    found[name] = place


class _Headers:
    """A tar's bytes, of which only so many may be read before the next member."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.left = _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise _wrong(f"a member's header is larger than {_MAX_HEADER} bytes")
        self.left -= size
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _check_directory(archive: Path) -> None:
    """Refuse a zip whose directory would fill the memory; its size is what the end record says and zipfile believes."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    said = struct.unpack_from("<I", tail, end + 12)[0] if 0 <= end <= len(tail) - 22 else 0
    # 0xFFFFFFFF: the size is in a ZIP64 record, and at most the file's.
    if min(said, size) > MAX_FILES * _MEAN_ENTRY:
        raise _too_much(f"it has more than {MAX_FILES} files, or names too long")


def _wrong(message: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"the dataset's file cannot be used: {message}")


def _too_much(message: str) -> WorkerError:
    return WorkerError("RESOURCE_EXHAUSTED", f"the dataset's file is refused: {message}")

"""Unpacks an archive that a stranger made: .zip, .tar or .tar.gz, known by their content and not by their names.

Only plain files and directories come out, under the given directory, with default permissions. Bytes are counted as
they are unpacked: what an archive says about itself is not believed.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from enginehouse_worker.errors import WorkerError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES = 16 << 30
MAX_FILES = 10_000
# Deflate reaches 1,030:1 at most; weights hardly shrink at all. Small archives may (a test's zeros do).
MAX_RATIO = 200
_RATIO_APPLIES_FROM = 64 << 20
_MAX_DEPTH = 32
_CHUNK = 1 << 20
# Bytes of headers that may come before one member of a tar (long names, extended headers).
_MAX_HEADER = 1 << 20
# A central directory's bytes per member: 46, the name, and extra fields.
_MAX_DIRECTORY_ENTRY = 1 << 10
_NAME_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL)


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def archive_kind(path: Path) -> str | None:
    """ "zip", "tar" or "tar.gz" by the file's first bytes; None for anything else."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head[:2] == b"\x1f\x8b":
        return "tar.gz"
    # Both POSIX's "ustar\0" and GNU's "ustar " have it here.
    return "tar" if head[257:262] == b"ustar" else None


def extract(archive: Path, into: Path, *, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpack an archive into a directory that is empty or does not exist yet.

    After an error the directory may hold a part of the archive.

    Args:
        max_bytes: of all files together, unpacked.
        max_files: files and directories.

    Raises:
        WorkerError: INVALID_ARGUMENT when the file is no such archive or is damaged; has a member that is encrypted, is
            a link or a device, or has a name that leaves the directory or is there twice; RESOURCE_EXHAUSTED when it
            is larger than the limits or shrinks by more than any model does (a bomb).
    """
    kind = archive_kind(archive)
    if kind is None:
        raise _wrong(archive, "it is no archive; expected a .zip, .tar or .tar.gz file")
    into.mkdir(parents=True, exist_ok=True)
    target = _Target(archive, into, max_bytes, max_files)
    try:
        if kind == "zip":
            _extract_zip(archive, target)
        elif kind == "tar":
            with archive.open("rb") as file:
                _extract_tar(file, target)
        else:
            with gzip.open(archive, "rb") as file:
                _extract_tar(file, target)
    except WorkerError:
        raise
    except NotImplementedError as error:
        raise _wrong(archive, f"it uses a feature of its format that is not supported ({error})") from None
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _wrong(archive, f"it is damaged or cut short ({error})") from None
    except (ValueError, struct.error, RuntimeError, OverflowError, RecursionError, IndexError) as error:
        # What the standard library's parsers raise beside their own errors when fields contradict each other.
        raise _wrong(archive, f"it is damaged ({error})") from None
    except OSError as error:
        # A seek to a negative offset, or to one past what a file can have.
        if error.errno == errno.EINVAL:
            raise _wrong(archive, "it is damaged (it points outside itself)") from None
        raise


class _Target:
    """The directory that members go to, and what has gone there."""

    def __init__(self, archive: Path, into: Path, max_bytes: int, max_files: int) -> None:
        self.archive = archive
        self._into = into
        self._max_bytes = max_bytes
        self.max_files = max_files
        self._compressed = max(archive.stat().st_size, 1)
        self._names: set[PurePosixPath] = set()
        self._bytes = 0

    def directory(self, name: str) -> None:
        path = self._into / self._checked(name, directory=True)
        self._guarded(name, lambda: path.mkdir(parents=True, exist_ok=True))

    def file(self, name: str, source: _Readable) -> None:
        path = self._into / self._checked(name, directory=False)

        def create() -> IO[bytes]:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")

        with self._guarded(name, create) as file:
            while chunk := source.read(_CHUNK):
                self.count(len(chunk))
                file.write(chunk)

    def count(self, size: int) -> None:
        """Count unpacked bytes against the limits."""
        self._bytes += size
        if self._bytes > self._max_bytes:
            raise self._too_much(f"it unpacks to more than {self._max_bytes} bytes")
        if self._bytes > _RATIO_APPLIES_FROM and self._bytes > MAX_RATIO * self._compressed:
            raise self._too_much(f"it unpacks to more than {MAX_RATIO} times its size, as archives made to do harm do")

    def _checked(self, name: str, *, directory: bool) -> PurePosixPath:
        if len(self._names) >= self.max_files:
            raise self._too_much(f"it has more than {self.max_files} members")
        path = PurePosixPath(name)
        shown = ascii(name[:200])
        if not name or "\0" in name or any(0xD800 <= ord(c) <= 0xDFFF for c in name):
            raise _wrong(self.archive, f"its member {shown} has a name that no file can have")
        if path.is_absolute() or ".." in path.parts or "\\" in name or (len(name) > 1 and name[1] == ":"):
            raise _wrong(
                self.archive, f"its member {shown} would leave the directory; expected relative names without '..'"
            )
        if len(path.parts) > _MAX_DEPTH:
            raise _wrong(self.archive, f"its member {shown} is more than {_MAX_DEPTH} directories deep")
        if path in self._names and not directory:
            raise _wrong(self.archive, f"its member {shown} is there twice")
        if not path.parts and not directory:
            raise _wrong(self.archive, f"its member {shown} has a name that no file can have")
        self._names.add(path)
        return path

    def _guarded(self, name: str, make: Any) -> Any:
        """Make a file or directory; a name that contradicts another's or is too long is the archive's fault."""
        try:
            return make()
        except OSError as error:
            if error.errno in _NAME_ERRORS:
                reason = os.strerror(error.errno or 0).lower()
                raise _wrong(self.archive, f"its member {name[:200]!a} cannot be unpacked: {reason}") from None
            raise

    def _too_much(self, what: str) -> WorkerError:
        return WorkerError("RESOURCE_EXHAUSTED", f"the archive {self.archive.name} is refused: {what}")


def _wrong(archive: Path, what: str) -> WorkerError:
    return WorkerError("INVALID_ARGUMENT", f"the archive {archive.name} cannot be used: {what}")


def _extract_zip(archive: Path, target: _Target) -> None:
    if _central_directory_size(archive) > target.max_files * _MAX_DIRECTORY_ENTRY:
        # zipfile reads all of it into memory at once.
        raise WorkerError(
            "RESOURCE_EXHAUSTED", f"the archive {archive.name} is refused: it has more than {target.max_files} members"
        )
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            shown = ascii(member.filename[:200])
            kind = stat.S_IFMT(member.external_attr >> 16)
            # A zip made on Windows has no Unix mode at all.
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _wrong(archive, f"its member {shown} is a link or a device; only files and directories are taken")
            if member.flag_bits & 0x1:
                raise _wrong(archive, f"its member {shown} is encrypted; upload it without a password")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _wrong(
                    archive,
                    f"its member {shown} is compressed by method {member.compress_type}; expected deflate or none",
                )
            if member.is_dir():
                target.directory(member.filename)
                continue
            with opened.open(member) as source:
                target.file(member.filename, source)


def _central_directory_size(archive: Path) -> int:
    """The size of a zip's central directory as its end record says, which is what zipfile goes by."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 22 - 20 - 56))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise _wrong(archive, "it is damaged or cut short (the zip's directory is missing)")
    found: int = struct.unpack_from("<L", tail, end + 12)[0]
    if end >= 76 and tail[end - 20 : end - 16] == b"PK\x06\x07" and tail[end - 76 : end - 72] == b"PK\x06\x06":
        found = max(found if found != 0xFFFFFFFF else 0, struct.unpack_from("<Q", tail, end - 76 + 40)[0])
    return min(found, size)


class _HeaderLimit:
    """A tar's bytes, of which only so many may be read at a time while a header is expected.

    tarfile reads a header's long name or extended attributes into memory, whatever size they claim.
    """

    def __init__(self, file: _Readable, archive: Path) -> None:
        self._file = file
        self._archive = archive
        self.left: int | None = None

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise _wrong(self._archive, f"a member's header is larger than {_MAX_HEADER} bytes")
        return data


class _StrictTarInfo(tarfile.TarInfo):
    """A header that tarfile does not take for the end of the archive when it is damaged or missing."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


def _extract_tar(file: Any, target: _Target) -> None:
    source = _HeaderLimit(file, target.archive)
    # Opening reads the first header.
    source.left = _MAX_HEADER
    with tarfile.open(fileobj=source, mode="r|", tarinfo=_StrictTarInfo) as opened:  # type: ignore[call-overload]
        while True:
            source.left = _MAX_HEADER
            member = opened.next()
            # tarfile remembers every member.
            opened.members = []
            if member is None:
                break
            source.left = None
            shown = ascii(member.name[:200])
            if member.isdir():
                target.directory(member.name)
                continue
            if not member.isreg() or member.issparse():
                raise _wrong(
                    target.archive, f"its member {shown} is a link, device or sparse file; only plain files are taken"
                )
            content = opened.extractfile(member)
            if content is None:
                raise _wrong(target.archive, f"its member {shown} cannot be read")
            target.file(member.name, content)
    # The rest is padding, but a gzip's checksum comes after it.
    source.left = None
    while rest := file.read(_CHUNK):
        target.count(len(rest))
